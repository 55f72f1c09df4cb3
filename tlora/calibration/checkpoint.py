"""A calibration that goes on: what is done already, and what is left for this process to do."""

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
    """A folder that holds a calibration of the samples so far, as ``samples-<how many>.safetensors``.

    A new one is renamed into place before the earlier one is removed: whenever the process is killed, one is there.

    Parameters
    ----------
    folder : path-like
        Where; of several processes each has a folder of its own in it.
    every : float
        Seconds between two saves; 0 saves after every batch.
    processes : Processes
        Those of this run.
    """

    def __init__(self, folder: Path, every: float, processes: Processes) -> None:
        if folder.is_file():
            raise ValueError(f"checkpoint={str(folder)!r} is a file: name a folder")
        part = f"process-{processes.rank}-of-{processes.count}"
        self.folder = folder / part if processes.count > 1 else folder
        self.every = every
        self._last = time.monotonic()

    def load(self) -> Calibration | None:
        """What was saved last, if anything."""
        saved = self._saved()
        return Calibration.load(saved[-1]) if saved else None

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last >= self.every

    def save(self, calibration: Calibration) -> None:
        """Save what is done, and remove what was saved before."""
        file = self.folder / f"samples-{len(calibration.sample_fingerprints):09d}{RESULT_SUFFIX}"
        if not file.exists():
            calibration.save(file)
        for earlier in self._saved()[:-1]:
            earlier.unlink(missing_ok=True)
        self._last = time.monotonic()

    def _saved(self) -> list[Path]:
        """Our own by their names, the last one last: what else is there is somebody's."""
        ours = (
            path for path in self.folder.glob(f"samples-*{RESULT_SUFFIX}") if re.fullmatch(r"samples-\d{9,}", path.stem)
        )
        return sorted(ours, key=lambda path: int(path.stem.removeprefix("samples-")))


class Share:
    """The samples that are left for one process: its part, without those that are done.

    Parameters
    ----------
    processes : Processes
        Batches go to them in turn.
    done : list of int
        Fingerprints of samples that need not be run again.

    Attributes
    ----------
    order : list of int
        Fingerprints of all samples of all processes that went by, in the order of the input.
    """

    def __init__(self, processes: Processes, done: list[int]) -> None:
        self.processes, self._done = processes, Counter(done)
        self.order: list[int] = []

    def check(self, batches: Iterable[Batch], folder: Path) -> None:
        """Refuse a checkpoint that holds samples which are not among these.

        Raises
        ------
        ValueError
            If it does: the result would be of other samples than those asked for.
        """
        mine = (batch for number, batch in enumerate(batches) if self._is_mine(number))
        asked = Counter(print_ for batch in mine for print_ in batch.fingerprints)
        if others := sum((self._done - asked).values()):
            raise ValueError(
                f"the checkpoint in {folder} holds {others} samples that are not among these batches: give all of its "
                "samples and more, name another folder, or merge two calibrations with Calibration.merge"
            )

    def left(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, or parts of batches, that are left to do.

        Raises
        ------
        ValueError
            If there are fewer batches than processes.
        """
        number = -1
        for number, batch in enumerate(batches):
            self.order += batch.fingerprints
            if not self._is_mine(number):
                continue
            missing = [n for n, print_ in enumerate(batch.fingerprints) if not self._take(print_)]
            if missing:
                yield batch if len(missing) == len(batch) else batch.only(missing)
        if -1 < number < self.processes.count - 1:
            raise ValueError(
                f"{number + 1} batches for {self.processes.count} processes: start fewer, or make batches smaller"
            )

    def _is_mine(self, number: int) -> bool:
        return number % self.processes.count == self.processes.rank

    def _take(self, fingerprint: int) -> bool:
        """Whether a sample is done; each that is counts once, for a sample may be given twice."""
        is_done = self._done[fingerprint] > 0
        self._done[fingerprint] -= is_done
        return is_done
