"""Prompt sets: named, ordered, hashed; and their files."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_text
from toolkit.masks import PromptsInfo

# The field of a table that holds the prompt, by the names public sets give it.
TEXT_FIELDS = ("prompt", "text", "instruction", "goal", "forbidden_prompt", "question", "behavior")


@dataclass(frozen=True)
class Prompt:
    """One user message and the category its set files it under."""

    text: str
    category: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """Named, ordered prompts.

    Two sets with the same prompts in the same order have the same ``sha256``, whatever
    their names.

    Args:
        name: as :func:`toolkit.prompts.read_prompts` finds it, or said so that one can tell.
        prompts: in order.
        parts: the sets that it was joined from, if it was.
    """

    name: str
    prompts: tuple[Prompt, ...]
    parts: tuple["PromptSet", ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, part: slice) -> "PromptSet":
        """A slice, named as Python writes it: ``advbench[:100]``."""
        ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
        step = "" if part.step is None else f":{part.step}"
        name = f"({self.name})" if self.parts else self.name
        return PromptSet(f"{name}[{':'.join(ends)}{step}]", self.prompts[part])

    @property
    def texts(self) -> list[str]:
        """The messages, in order."""
        return [prompt.text for prompt in self.prompts]

    @cached_property
    def sha256(self) -> str:
        """Hash of the contents: every text and category, in order."""
        return sha256_text(canonical_json([[p.text, p.category] for p in self.prompts]))

    def by_category(self) -> dict[str, "PromptSet"]:
        """The prompts of each category, in the order the categories first come.

        Each is named as :func:`read_prompts` finds it again: ``strongreject#Violence``.
        Prompts without a category are in none. A category of several joined sets is joined
        from theirs.
        """
        if self.parts:
            shared: dict[str, list[PromptSet]] = {}
            for part in self.parts:
                for name, own in part.by_category().items():
                    shared.setdefault(name, []).append(own)
            return {name: joined(sets) for name, sets in shared.items()}
        found: dict[str, list[Prompt]] = {}
        for prompt in self.prompts:
            if prompt.category is not None:
                found.setdefault(prompt.category, []).append(prompt)
        return {
            name: PromptSet(f"{self.name}#{name}", tuple(prompts))
            for name, prompts in found.items()
        }

    def without(self, others: "PromptSet") -> "PromptSet":
        """Those whose messages are not among the others', named with how many were left out."""
        unwanted = set(others.texts)
        kept = tuple(prompt for prompt in self.prompts if prompt.text not in unwanted)
        if len(kept) == len(self):
            return self
        return PromptSet(f"{self.name} without {len(self) - len(kept)} of {others.name}", kept)

    def info(self) -> PromptsInfo:
        """Name, hash and count, as results record them."""
        return PromptsInfo(name=self.name, sha256=self.sha256, count=len(self))


def joined(sets: Sequence[PromptSet]) -> PromptSet:
    """One set of several, one after another; a message that came before is left out."""
    if len(sets) == 1:
        return sets[0]
    kept: dict[str, Prompt] = {}
    for prompt in (prompt for part in sets for prompt in part):
        kept.setdefault(prompt.text, prompt)
    return PromptSet("+".join(part.name for part in sets), tuple(kept.values()), tuple(sets))


def rows_to_prompts(rows: list[Any], where: str) -> list[Prompt]:
    """Prompts of a table's rows or a list's entries; ``where`` names it in errors."""
    prompts: list[Prompt] = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            prompts.append(Prompt(row.strip()))
            continue
        if not isinstance(row, dict):
            raise SafeNeuronError(f"{where}: entry {number} is neither a text nor an object")
        field = next((name for name in TEXT_FIELDS if name in row), None)
        if field is None:
            raise SafeNeuronError(
                f"{where}: entry {number} has no prompt; name its field one of "
                f"{', '.join(TEXT_FIELDS)}"
            )
        text, category = row[field], row.get("category") or row.get("topic")
        if not isinstance(text, str):
            raise SafeNeuronError(f"{where}: entry {number}: {field} is not a text")
        prompts.append(Prompt(text.strip(), str(category) if category else None))
    return prompts


def parse_txt(text: str, where: str) -> list[Prompt]:
    """One prompt a line; empty lines are passed over."""
    return [Prompt(line.strip()) for line in _lines(text) if line.strip()]


def _lines(text: str) -> list[str]:
    # Not splitlines: it also cuts at U+2028 and the like, which may stand inside a prompt.
    return text.split("\n")


def _parse_csv(text: str, where: str) -> list[Prompt]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        return rows_to_prompts(list(reader), where)
    except csv.Error as error:
        raise SafeNeuronError(
            f"{where} is not CSV after line {reader.line_num}: {error}"
        ) from error


def _parse_json(text: str, where: str) -> list[Prompt]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SafeNeuronError(f"{where} is not JSON: {error}") from error
    if isinstance(data, dict):
        data = data.get("prompts")
    if not isinstance(data, list):
        raise SafeNeuronError(f"{where}: expected a list of prompts, or an object with 'prompts'")
    return rows_to_prompts(data, where)


def parse_jsonl(text: str, where: str) -> list[Prompt]:
    """One JSON object or string a line.

    Raises:
        SafeNeuronError: a line that is not JSON or holds no prompt, named by its number.
    """
    rows = []
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise SafeNeuronError(f"{where}: line {number} is not JSON: {error}") from error
    return rows_to_prompts(rows, where)


Parser = Callable[[str, str], list[Prompt]]
"""From a file's text, and its name for errors."""

PARSERS: dict[str, Parser] = {
    ".txt": parse_txt,
    ".csv": _parse_csv,
    ".json": _parse_json,
    ".jsonl": parse_jsonl,
}


def read_file(path: Path, parsers: Mapping[str, Parser] = PARSERS) -> PromptSet:
    """Read prompts from a .txt (a prompt a line), .csv, .json or .jsonl file.

    Args:
        path: the file.
        parsers: how each kind of file is read, by the end of its name.

    Raises:
        SafeNeuronError: the file is missing, not UTF-8, of another kind, malformed, or
            has an empty prompt.
    """
    parser = parsers.get(path.suffix.lower())
    if parser is None:
        raise SafeNeuronError(f"{path}: prompts are read from {', '.join(parsers)} files")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SafeNeuronError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise SafeNeuronError(f"cannot read the prompts {path}: {error.strerror}") from error
    prompts = parser(text, str(path))
    if not prompts:
        raise SafeNeuronError(f"{path} holds no prompts")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.text:
            raise SafeNeuronError(f"{path}: prompt {number} is empty")
        # JSON can write half of a surrogate pair, which no tokenizer and no hash can take.
        if any("\ud800" <= letter <= "\udfff" for letter in prompt.text + (prompt.category or "")):
            raise SafeNeuronError(f"{path}: prompt {number} has a broken character (a surrogate)")
    return PromptSet(path.stem, tuple(prompts))
