"""Tables to files: CSV, parquet, Markdown and HTML, by the end of the name."""

import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable, write_atomically

STYLE = (
    "body{font:16px/1.55 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;"
    "color-scheme:light dark}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{text-align:right;padding:.25rem .7rem;border-bottom:1px solid #8884}"
)


def cell(value: object) -> str:
    """One value as a person reads it: four digits of a number, a dash for what is missing."""
    if value is None or value is pd.NA or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_table(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    return markdown_rows(list(table.columns), table.astype(object).to_numpy())


def markdown_rows(header: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    """Rows under a header, in Markdown."""
    lines = ["| " + " | ".join(_escaped(str(name)) for name in header) + " |"]
    lines.append("|" + " --- |" * len(header))
    lines += ["| " + " | ".join(_escaped(cell(value)) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def html_table(table: pd.DataFrame) -> str:
    """A table in HTML."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>"
        for row in table.astype(object).itertuples(index=False)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def html_page(title: str, body: str) -> str:
    """A page that stands alone."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table so that one layer of it is read without the others.

    Rows stand in groups of 65,536, each with the smallest and largest of its columns; a
    table sorted by layer has each layer in one or two of them.
    """
    scratch = path.with_name(f".{path.name}.partial")
    try:
        table.to_parquet(
            scratch,
            index=False,
            row_group_size=1 << 16,
            compression="zstd",
            use_dictionary=[name for name in ("layer",) if name in table],
            write_page_checksum=True,
        )
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": lambda table, path: write_atomically(path, table.to_csv(index=False)),
    ".md": lambda table, path: write_atomically(path, markdown_table(table)),
    ".html": lambda table, path: write_atomically(path, html_page(path.stem, html_table(table))),
    ".parquet": write_parquet,
}


def require_table(path: Path) -> None:
    """Fail early where a table could not be written.

    Raises:
        SafeNeuronError: the name has another ending, or its folder is not writable.
    """
    if path.suffix.lower() not in WRITERS:
        raise SafeNeuronError(f"{path}: name a table {', '.join(WRITERS)}")
    require_writable(path, "file")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table in the format its name ends in, whole or not at all.

    Raises:
        SafeNeuronError: the name has another ending, or it cannot be written.
    """
    require_table(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix.lower()](table, path)
