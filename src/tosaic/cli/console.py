"""Where the command line prints: results on stdout, progress on stderr (in a terminal only)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDE = 10_000  # where the output is no terminal, lines are never broken


def stdout() -> Console:
    """A console on the present stdout, which markup and highlighting leave alone."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=WIDE)


def table(rows: Sequence[Sequence[str]], *, indent: int = 2) -> None:
    """Print rows in aligned columns; the first row is not special."""
    if not rows:
        return
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in rows[0]:
        grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in (" " * indent + row[0], *row[1:])))
    console = stdout()
    with console.capture() as text:
        console.print(grid)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


class Steps:
    """Names what is being done, and for how long it was; a bar where the number of parts is known, else a pulse.

    Attributes:
        seconds: of each step that is over, in order.
    """

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._task: TaskID | None = None
        self._step = ("", 0.0)
        self._total: int | None = None

    def begin(self, what: str, total: int | None = None, *, hidden: bool = False) -> None:
        """End the step before, and start one; a hidden one leaves the terminal to somebody else."""
        self.end()
        self._step, self._total = (what, time.perf_counter()), total
        if self._progress is not None and not hidden:
            self._progress.start()
            self._task = self._progress.add_task(what, total=total, count="")

    def at(self, done: int, what: str | None = None, total: int | None = None) -> None:
        """So many parts of the step are done; what the next is called, and how many there are, if that was not known before."""
        self._total = total or self._total
        if self._progress is not None and self._task is not None:
            count = f"{done}/{self._total}" if self._total else str(done)
            self._progress.update(self._task, description=what, completed=done, total=self._total, count=count)

    def end(self) -> None:
        """End the step."""
        what, started = self._step
        if what:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started
        self._step = ("", 0.0)
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.stop()
            self._task = None


@contextmanager
def steps() -> Iterator[Steps]:
    """Show progress while the block runs, and wipe it at the end; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[count]}"))
    progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True) if console.is_terminal else None
    at = Steps(progress)
    try:
        yield at
    finally:
        at.end()


def plural(count: int, noun: str) -> str:
    """`1 operator`, `2 operators`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes for people: `812 bytes`, `3.4 kB`, `12.1 MB`."""
    if count < 10_000:
        return f"{count:,} bytes"
    return f"{count / 1000:,.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"
