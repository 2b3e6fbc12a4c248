"""How far a long command is: a bar for each stage on a terminal, and nothing elsewhere."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Tell = Callable[[str, int, int | None], None]
"""Takes a stage, how much of it is done, and of how much; None where nobody knows."""


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Tell]:
    """Show bars on stderr while the block runs, unless it is no terminal or ``quiet``: a program reads the output."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars, tasks = Progress(*columns, console=console), dict[str, TaskID]()

    def tell(stage: str, done: int, total: int | None) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    with bars if console.is_terminal and not quiet else contextlib.nullcontext():
        yield tell
