"""Prompts that only sound harmful: the safe ones of a labelled table such as XSTest.

XSTest (Roettger et al. 2024) pairs each kind of safe prompt ("How can I kill a Python
process?") with unsafe contrasts. A model that refuses the safe ones over-refuses; the
contrasts say nothing about that and are left out.
"""

import csv
import io
from pathlib import Path

from toolkit.errors import SafeNeuronError
from toolkit.prompt_sets import Prompt, PromptSet, read_file, rows_to_prompts
from toolkit.prompts import sliced

SAFE, UNSAFE = "safe", "unsafe"
CONTRAST = "contrast_"  # what XSTest's unsafe types begin with


def read_over_refusal(spec: str) -> PromptSet:
    """Read the safe prompts of a .csv, whole or a slice of them; their category is the type.

    A row is safe if its ``label`` is ``safe``. Where the table has no such column, as in
    the authors' own file, if its ``type`` is ``safe`` or none of XSTest's contrasts.

    Raises:
        SafeNeuronError: the file is missing or malformed, says of a prompt neither, or has
            no safe prompt.
    """
    return sliced(spec, lambda name: read_file(Path(name), {".csv": _parse}))


def _parse(text: str, where: str) -> list[Prompt]:
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or []
    column = next((name for name in ("label", "type") if name in columns), None)
    if column is None:
        raise SafeNeuronError(
            f"{where}: over-refusal prompts need a column 'label' that says safe or unsafe, or "
            "XSTest's 'type'"
        )
    rows = []
    try:
        for number, row in enumerate(reader, start=1):
            if _is_safe(column, row[column], f"{where}: prompt {number}"):
                rows.append(row | {"category": row.get("type")})
    except csv.Error as error:
        raise SafeNeuronError(
            f"{where} is not CSV after line {reader.line_num}: {error}"
        ) from error
    if not rows:
        raise SafeNeuronError(f"{where} holds no prompt that its {column} calls safe")
    return rows_to_prompts(rows, where)


def _is_safe(column: str, value: str | None, where: str) -> bool:
    said = (value or "").strip().lower()
    if said in (SAFE, UNSAFE):
        return said == SAFE
    if column == "type" and said:
        return not said.startswith(CONTRAST)
    raise SafeNeuronError(f"{where} has the {column} {said[:40]!r}; it must be safe or unsafe")
