"""Where the command line prints: results on stdout, progress on stderr (in a terminal only)."""

from __future__ import annotations

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
    """Names what is being done; a bar where the number of steps is known, else a pulse."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._total: int | None = None

    def begin(self, what: str, total: int | None = None) -> None:
        """End the step before, and start one."""
        if self._progress is None:
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._total = total
        self._task = self._progress.add_task(what, total=total, count="")

    def at(self, done: int) -> None:
        """So many are done."""
        if self._progress is not None and self._task is not None:
            count = f"{done}/{self._total}" if self._total else str(done)
            self._progress.update(self._task, completed=done, count=count)


@contextmanager
def steps() -> Iterator[Steps]:
    """Show progress while the block runs, and wipe it at the end; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Steps(None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Steps(progress)


def plural(count: int, noun: str) -> str:
    """`1 operator`, `2 operators`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes for people: `812 bytes`, `3.4 kB`, `12.1 MB`."""
    if count < 10_000:
        return f"{count:,} bytes"
    return f"{count / 1000:,.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"
