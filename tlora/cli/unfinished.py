"""A run that is not finished: what it keeps in its output folder until the adapter is whole, and how it resumes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from filelock import FileLock, Timeout

from tlora.cli.command_line import UNTYPED, format_command, spell_option, with_suffix
from tlora.cli.output import is_first_process, summary_text
from tlora.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, UNFINISHED
from tlora.utils.files import check_place, remove_folder, replace_file

OPTIONS = "run.yaml"
"""The file of a command's options, as ``--config`` takes them."""

LOCK = ".tlora-lock"
"""The file that a run locks, in the folder of its unfinished work; named like one that a killed process may leave."""

FREE = ("output", "device", "report_to", "read", "save_calibration")
"""Options that may differ when a run resumes: they change none of its numbers."""


@dataclass(frozen=True)
class UnfinishedRun:
    """What a command keeps in ``tlora/unfinished`` of its output folder until the adapter is whole.

    Attributes
    ----------
    folder : Path
        Holds the options; ``calibration/``, as `tlora.calibrate` saves its progress, every five minutes and at the end;
        the allocation, to look at; and ``checkpoints/`` of `tlora.train`. An adapter that the output folder had before
        stays as it is until the new one is saved. The folder goes last, when pictures and card are drawn.
    """

    folder: Path

    @classmethod
    def open(cls, ctx: typer.Context, output: Path, resume: bool, overwrite: bool) -> UnfinishedRun:
        """Return what is kept in an output folder, after refusing one that must not be written or resumed."""
        work = cls(output / UNFINISHED)
        if is_first_process():
            work._lock(ctx, output)
        if resume:
            if not work.options.is_file():
                state = "holds a finished adapter" if (output / ADAPTER_CONFIG).is_file() else "holds no unfinished run"
                raise FileNotFoundError(f"{output} {state}: there is nothing to resume, leave out --resume")
            work._check_options(ctx)
        elif work.folder.exists() and not overwrite:
            raise FileExistsError(
                f"{output} holds an unfinished run: continue it with --resume, or start again with --overwrite"
            )
        else:
            check_place(output, UNFINISHED if work.folder.exists() else ADAPTER_WEIGHTS, overwrite=overwrite)
        return work

    def _lock(self, ctx: typer.Context, output: Path) -> None:
        """Refuse a folder that another run writes; the lock goes with the process, however it ends."""
        file = self.folder.parent / LOCK
        lock = FileLock(file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(f"another run writes {output}: wait until it has ended, or name another") from None
        except OSError:
            return  # not a folder, or one that cannot be written: what is checked next says so

        def release() -> None:
            with contextlib.suppress(PermissionError):  # on Windows while it is open, which is removed then
                file.unlink(missing_ok=True)
            lock.release()
            _remove_empty(file.parent)

        ctx.call_on_close(release)

    @property
    def options(self) -> Path:
        """The options of the command, as ``--config`` takes them."""
        return self.folder / OPTIONS

    @property
    def calibration(self) -> Path:
        """Folder of the calibration's progress."""
        return self.folder / "calibration"

    @property
    def allocation(self) -> Path:
        """The allocation, to look at while training goes on."""
        return self.folder / "allocation.safetensors"

    @property
    def checkpoints(self) -> Path:
        """Folder of the training's checkpoints."""
        return self.folder / "checkpoints"

    def begin(self, ctx: typer.Context, resume: bool, dtype: str) -> None:
        """Write the options and the precision, in place of what an earlier run left unless this one resumes it."""
        if not resume:
            remove_folder(self.folder)
            write_options(ctx, self.options, dtype=dtype)
        elif (began := self._read_options()["dtype"]) != dtype:  # which the device decides if no option does
            raise ValueError(
                f"the run in {self.folder} computes in {began}, and this would continue it in {dtype}: pass --dtype "
                f"{began}"
            )
        for checkpoint in self.checkpoints.glob("checkpoint-*"):
            if not _is_complete(checkpoint):
                shutil.rmtree(checkpoint)

    def has_checkpoint(self) -> bool:
        """Whether the training can continue from one."""
        return any(map(_is_complete, self.checkpoints.glob("checkpoint-*")))

    def remove(self) -> None:
        """Remove all of it, and the folders around it if nothing else is in them."""
        remove_folder(self.folder)
        _remove_empty(self.folder.parent)

    @contextlib.contextmanager
    def kept_on_error(self, ctx: typer.Context) -> Iterator[None]:
        """Add to an error inside the block how the run continues; remove the folder if nothing was computed yet."""
        try:
            yield
        except BaseException as error:
            if self.folder.is_dir() and not any(path != self.options for path in self.folder.iterdir()):
                self.remove()
            note(error, self.next_step(ctx))
            raise

    def next_step(self, ctx: typer.Context) -> dict[str, str]:
        """Return where the work is kept, and the line that continues it; empty if nothing is kept."""
        if not self.options.is_file():
            return {}
        line = format_command(ctx.command, ctx.params | {"resume": True, "overwrite": False})
        return {"kept": str(self.folder), "next": line}

    def _read_options(self) -> dict[str, Any]:
        import yaml

        values: dict[str, Any] = yaml.safe_load(self.options.read_text(encoding="utf-8"))
        return values

    def _check_options(self, ctx: typer.Context) -> None:
        """Refuse other options than those that the run began with, if they change numbers."""
        began, now = self._read_options(), option_values(ctx)
        now.setdefault("dtype", began["dtype"])  # compared when the model is loaded
        for name in {**began, **now}:
            if name not in FREE and began.get(name) != now.get(name):
                before, here = (spell_option(ctx.command, name, values.get(name)) for values in (began, now))
                raise ValueError(
                    f"the run in {self.folder} began {before}, and this would continue it {here}: take the same "
                    "options, or start again with --overwrite"
                )


def _remove_empty(folder: Path) -> None:
    """Remove a folder and the one around it, if nothing else is in them."""
    for parent in (folder, folder.parent):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def note(error: BaseException, facts: Mapping[str, str]) -> None:
    """Add facts to an error or an interruption, if there are any."""
    if facts:
        error.add_note(summary_text(facts))


def option_values(ctx: typer.Context) -> dict[str, Any]:
    """Return the options of a command as plain values, without those that are not set."""
    values = {parameter.name: ctx.params.get(parameter.name) for parameter in ctx.command.params}
    return {str(name): _plain(value) for name, value in values.items() if value is not None and name not in _UNKEPT}


def write_options(ctx: typer.Context, file: Path, **more: str) -> None:
    """Write the file that repeats a command, with ``more`` options."""
    import yaml

    values = option_values(ctx) | more
    with replace_file(file) as fresh:
        fresh.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


_UNKEPT = (*UNTYPED, "overwrite", "resume")


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _is_complete(checkpoint: Path) -> bool:
    from tlora.training.checkpoints import is_complete

    return is_complete(checkpoint)


def earlier_leftover(output: Path) -> str:
    """Return a sentence about a folder in which version 0.1 before its release kept unfinished runs; empty without."""
    folder = with_suffix(output, "-unfinished")
    return f"{folder} is left from an earlier version, which kept unfinished runs there: remove it" * folder.is_dir()
