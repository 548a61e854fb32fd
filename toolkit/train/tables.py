"""Rows of .jsonl, .json, .csv and .parquet files, each with the place it stands at."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import SafeNeuronError

KINDS = (".jsonl", ".json", ".csv", ".parquet")
PACKED = (".gz", ".xz")
Row = tuple[str, Any]
"""Where a row stands, in words, and what it holds."""


def kind_of(path: Path) -> str:
    """The kind that a file's name says it is, without the ending of a packed one."""
    suffixes = path.suffixes[-2:]
    packed = bool(suffixes) and suffixes[-1].lower() in PACKED
    named = suffixes[:-1] if packed else suffixes
    return named[-1].lower() if named else ""


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Read a table's rows.

    Args:
        path: a .jsonl, .json or .csv file, each also packed as .gz or .xz, or .parquet.
        columns: what a .parquet file is asked for, as far as it has them; images and other
            heavy columns beside them stay on the disk.

    Raises:
        SafeNeuronError: no such file, another kind, not UTF-8, or a broken line, by number.
    """
    kind = kind_of(path)
    if kind not in KINDS:
        raise SafeNeuronError(f"{path}: pairs are read from {', '.join(KINDS)} files")
    if kind == ".parquet":
        return _parquet(path, columns)
    text = _text(path)
    rows = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}[kind](path, text)
    return list(rows)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
        elif path.suffix.lower() == ".xz":
            data = lzma.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SafeNeuronError(f"{path}: line {line} is not UTF-8; save the file so") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise SafeNeuronError(f"cannot read the pairs {path}: {told}") from error


def _jsonl(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines: a text may hold other separators, and JSON escapes its own newlines.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}: line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise SafeNeuronError(
                    f"{where} is not JSON ({error.msg} at column {error.colno}); mend or delete it"
                ) from error
            except (ValueError, RecursionError) as error:  # a number too long, or nested too deep
                raise SafeNeuronError(f"{where} is no pair: {error}; delete it") from error


def _json(path: Path, text: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise SafeNeuronError(
            f"{path}: line {error.lineno} is not JSON ({error.msg}); mend the file, or save it as "
            ".jsonl, a pair a line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number too long, or nested too deep
        raise SafeNeuronError(f"{path} holds no pairs: {error}") from error
    if not isinstance(rows, list):
        raise SafeNeuronError(f"{path}: expected a list of pairs")
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


def _csv(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if None in row or None in row.values():
                raise SafeNeuronError(
                    f"{where} has another number of fields than the header; quote fields that "
                    "hold commas or line breaks"
                )
            yield where, row
    except csv.Error as error:
        raise SafeNeuronError(
            f"{path}: line {reader.line_num} is not CSV ({error}); mend its quotes"
        ) from error


def _parquet(path: Path, columns: Sequence[str] | None) -> list[Row]:
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        file = parquet.ParquetFile(path)
        known = file.schema_arrow.names
        wanted = None if columns is None else [name for name in columns if name in known]
        # With none of the columns there, one is read so that what is there can be told.
        rows = file.read(wanted or known[:1]).to_pylist()
    except (OSError, ArrowException) as error:
        told = str(error).splitlines()[0]
        raise SafeNeuronError(f"cannot read the pairs {path}: {told}") from error
    if not wanted and rows:
        rows[0] = dict.fromkeys(known)
    return [(f"{path}: row {number}", row) for number, row in enumerate(rows, start=1)]
