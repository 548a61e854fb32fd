"""What a command shows: progress with time left, tables, one-line errors, JSON."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from toolkit.progress import Progress

# Into a file or a pipe, tables are as wide as they like.
OUT = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print a line for a person, as it is."""
    OUT.print(line, markup=False)


def note(line: str) -> None:
    """Print a line beside the result, on stderr."""
    ERR.print(line, markup=False)


def print_json(value: Any) -> None:
    """Print a result for a program, on stdout."""
    plain = _finite(value)
    sys.stdout.write(json.dumps(plain, indent=1, default=str, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns of figures are right-aligned, columns of words left."""
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for place, name in enumerate(columns):
        figures = all(str(row[place])[:1].isdigit() for row in rows)
        table.add_column(name, justify="right" if figures else "left", no_wrap=place == 0)
    for row in rows:
        table.add_row(*[Text(str(cell)) for cell in row])
    OUT.print(table)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a listing as a table or as JSON; of nothing, what makes something."""
    if as_json:
        print_json(rows)
    elif rows:
        cells = [[str(value) for value in row.values()] for row in rows]
        print_table(title, list(rows[0]), cells)
    else:
        say("nothing yet: 'safeneuron demo' makes a first study")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr, one line a stage; silent when stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=ERR, disable=not ERR.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update
