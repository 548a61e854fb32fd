"""Preference pairs: read from a file, or made from the model's own answers and refusals."""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import judge_refusal

COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt, the answer to prefer and the answer to avoid."""

    prompt: str
    chosen: str
    rejected: str


@dataclass
class PairReport:
    """What became of the pairs that were offered."""

    offered: int = 0
    kept: int = 0
    empty: int = 0
    equal: int = 0
    duplicate: int = 0
    too_long: int = 0
    no_contrast: int = 0

    def as_dict(self) -> dict[str, int]:
        """For the result's record."""
        return asdict(self)


def shipped_refusals() -> list[str]:
    """The refusals written for this project."""
    text = files("toolkit").joinpath("data/refusals.json").read_text("utf-8")
    return [str(refusal) for refusal in json.loads(text)["refusals"]]


def clean(
    pairs: Iterable[PreferencePair],
    length: Callable[[PreferencePair], int],
    max_length: int,
    report: PairReport,
) -> list[PreferencePair]:
    """Leave out pairs that teach nothing, and count them by reason.

    Args:
        pairs: as offered.
        length: tokens of the prompt and the longer answer.
        max_length: a longer pair would be cut in the middle of an answer.
        report: counts are added to it.
    """
    kept: list[PreferencePair] = []
    seen: set[PreferencePair] = set()
    for pair in pairs:
        report.offered += 1
        if not (pair.prompt.strip() and pair.chosen.strip() and pair.rejected.strip()):
            report.empty += 1
        elif pair.chosen.strip() == pair.rejected.strip():
            report.equal += 1
        elif pair in seen:
            report.duplicate += 1
        elif length(pair) > max_length:
            report.too_long += 1
        else:
            kept.append(pair)
        seen.add(pair)
    report.kept += len(kept)
    if not kept:
        raise SafeNeuronError(
            f"no usable preference pair among {report.offered}: {report.empty} with an empty side, "
            f"{report.equal} with chosen = rejected, {report.duplicate} repeated, "
            f"{report.too_long} longer than {max_length} tokens"
        )
    return kept


def read_pairs(path: Path) -> list[PreferencePair]:
    """Read pairs from a .jsonl, .json, .csv or .parquet file.

    Columns ``prompt``, ``chosen`` and ``rejected``; a side may also be a chat, a list of
    messages whose last ``content`` is the text.

    Raises:
        SafeNeuronError: no such file, another kind, a missing column, or a broken row.
    """
    rows = _read_rows(path)
    if not rows:
        raise SafeNeuronError(f"{path} holds no preference pairs")
    pairs = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise SafeNeuronError(f"{path}: row {number} is not an object")
        if missing := [name for name in COLUMNS if name not in row]:
            raise SafeNeuronError(
                f"{path}: row {number} has no {missing[0]!r}; pairs need {', '.join(COLUMNS)}"
            )
        pairs.append(PreferencePair(*(_text(row[name], path, number, name) for name in COLUMNS)))
    return pairs


def _text(value: Any, path: Path, number: int, name: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return str(value[-1]["content"])
    except (TypeError, KeyError, IndexError) as error:
        raise SafeNeuronError(
            f"{path}: row {number}: {name} is neither a text nor a chat"
        ) from error


def _read_rows(path: Path) -> Sequence[Any]:
    import pandas as pd

    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return pd.read_parquet(path).to_dict("records")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SafeNeuronError(f"{path} is not UTF-8 (byte {error.start}); save it so") from error
    except (OSError, ValueError) as error:
        raise SafeNeuronError(f"cannot read the pairs {path}: {error}".splitlines()[0]) from error
    if kind == ".csv":
        import csv
        import io

        return list(csv.DictReader(io.StringIO(text)))
    if kind == ".json":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise SafeNeuronError(f"{path} is not JSON: {error}") from error
        if not isinstance(rows, list):
            raise SafeNeuronError(f"{path}: expected a list of pairs")
        return rows
    if kind != ".jsonl":
        raise SafeNeuronError(f"{path}: pairs are read from .jsonl, .json, .csv or .parquet files")
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise SafeNeuronError(f"{path}: line {number} is not JSON: {error}") from error
    return found


def whole_sentences(text: str) -> str:
    """Drop what follows the last end of a sentence or line; all of it when there is none.

    Answers are cut at a number of tokens, and training ends each with the end token: the
    model must not learn to stop in the middle of a sentence.
    """
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|\n", text)]
    return text[: ends[-1]].strip() if ends else text.strip()


def make_pairs(
    harmful: Sequence[str],
    harmless: Sequence[str],
    answer: Callable[[Sequence[str]], list[str]],
    answer_without: Callable[[Sequence[str]], list[str]],
    refusals: Sequence[str],
    seed: int,
    report: PairReport,
) -> list[PreferencePair]:
    """Make pairs from the model itself.

    A harmful prompt prefers a refusal to the model's own compliance. Where the model
    refuses as it is, compliance is what it says without its safety neurons; where it
    refuses even then there is no contrast, and the prompt is left out and counted.
    A harmless prompt prefers the model's own answer to a refusal, so that it does not
    learn to refuse everything.

    Args:
        harmful: prompts to refuse.
        harmless: prompts to answer.
        answer: the model's greedy answers.
        answer_without: the same with the safety neurons removed.
        refusals: what a refusal may say.
        seed: of the draw of refusals and the order of the pairs.
        report: counts prompts without contrast.
    """
    generator = random.Random(seed)
    own = dict(zip(harmful, answer(harmful), strict=True))
    refused = [text for text, said in own.items() if judge_refusal(said).verdict != "complied"]
    own |= dict(zip(refused, answer_without(refused), strict=True)) if refused else {}
    pairs = []
    for text, said in own.items():
        refusal = generator.choice(refusals)
        if judge_refusal(said).verdict == "complied":
            pairs.append(PreferencePair(text, refusal, whole_sentences(said)))
        else:
            report.no_contrast += 1
    for text, said in zip(harmless, answer(harmless), strict=True):
        refusal = generator.choice(refusals)
        if judge_refusal(said).verdict == "complied":
            pairs.append(PreferencePair(text, whole_sentences(said), refusal))
        else:
            report.no_contrast += 1
    generator.shuffle(pairs)
    return pairs
