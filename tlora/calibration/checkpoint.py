"""Resume an interrupted calibration: the statistics saved so far, and the samples that remain for this process."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tlora.calibration.batches import Batch
from tlora.calibration.calibration import Calibration
from tlora.utils.distributed import Processes
from tlora.utils.file_names import RESULT_SUFFIX


class Checkpoint:
    """A folder with a calibration of the samples so far, ``samples-<count>.safetensors``.

    A new file is renamed into place before the earlier one is removed, so that one is always there. Each of several
    processes has a folder of its own in it. Saves are due ``every`` so many seconds.
    """

    def __init__(self, folder: Path, every: float, processes: Processes) -> None:
        if folder.is_file():
            raise ValueError(f"checkpoint={str(folder)!r} is a file: name a folder")
        part = f"process-{processes.rank}-of-{processes.count}"
        self.folder = folder / part if processes.count > 1 else folder
        self.every = every
        self._last = time.monotonic()

    def load(self) -> Calibration | None:
        """The last saved calibration, if any."""
        files = self._files()
        return Calibration.load(files[-1]) if files else None

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last >= self.every

    def save(self, calibration: Calibration) -> None:
        """Save the calibration and remove earlier ones."""
        file = self.folder / f"samples-{len(calibration.sample_fingerprints):09d}{RESULT_SUFFIX}"
        if not file.exists():
            calibration.save(file)
        for earlier in self._files()[:-1]:
            earlier.unlink(missing_ok=True)
        self._last = time.monotonic()

    def _files(self) -> list[Path]:
        """Our own files by their names, in the order of their samples."""
        files = self.folder.glob(f"samples-*{RESULT_SUFFIX}")
        return sorted(file for file in files if re.fullmatch(r"samples-\d{9}", file.stem))


class RemainingSamples:
    """The samples of one of several processes that are not done yet.

    ``order`` has the fingerprints of the samples of all processes seen so far, in the order of the input.
    """

    def __init__(self, processes: Processes, done: list[int]) -> None:
        self.processes, self._done = processes, Counter(done)
        self.order: list[int] = []

    def check(self, batches: Iterable[Batch], folder: Path) -> None:
        """Refuse a checkpoint with samples that are not in the batches: the result would be of other samples."""
        own_batches = (batch for number, batch in enumerate(batches) if self._is_own(number))
        expected = Counter(fingerprint for batch in own_batches for fingerprint in batch.fingerprints)
        if others := sum((self._done - expected).values()):
            raise ValueError(
                f"the checkpoint in {folder} holds {others} samples that are not among these batches: give all of its "
                "samples and more, name another folder, or merge two calibrations with Calibration.merge"
            )

    def select(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, or parts of batches, that this process still has to run."""
        number = -1
        for number, batch in enumerate(batches):
            self.order += batch.fingerprints
            if not self._is_own(number):
                continue
            remaining = [n for n, fingerprint in enumerate(batch.fingerprints) if not self._take(fingerprint)]
            if remaining:
                yield batch if len(remaining) == len(batch) else batch.select(remaining)
        if -1 < number < self.processes.count - 1:
            raise ValueError(
                f"{number + 1} batches for {self.processes.count} processes: start fewer, or make batches smaller"
            )

    def _is_own(self, number: int) -> bool:
        return number % self.processes.count == self.processes.rank

    def _take(self, fingerprint: int) -> bool:
        """Whether a sample is done; each counts once, since a sample can be given twice."""
        is_done = self._done[fingerprint] > 0
        self._done[fingerprint] -= is_done
        return is_done
