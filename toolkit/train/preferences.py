"""Preference data under its real columns, and the paper's mixture of safety and general pairs.

=====================  ==========================================================  ==========
data                   columns read                                                preferred
=====================  ==========================================================  ==========
own files              ``prompt``, ``chosen``, ``rejected``: texts or chats        ``chosen``
UltraFeedback          the same; chats, from HuggingFaceH4/ultrafeedback_binarized ``chosen``
PKU-SafeRLHF           ``prompt``, ``response_0``, ``response_1``, and             the safer,
                       ``safer_response_id`` or ``better_response_id``             or better
HH-RLHF                ``chosen``, ``rejected``: whole dialogues as text           ``chosen``
SPA-VL                 ``question``, ``chosen``, ``rejected``; beside an image     ``chosen``
=====================  ==========================================================  ==========

Which it is, the columns say. A dialogue of several turns is left out and counted: a pair here
is one message and two answers to it. SPA-VL's images are left where they are, so that its
pairs are text alone.

The paper mixes 30 % safety with 70 % general pairs against over-refusal (Appendix B); it
states 20 % of PKU-SafeRLHF, 83.4k pairs, and neither the size of the whole nor the label.
"""

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_text
from toolkit.train.pairs import PairReport, PreferencePair, kept, nothing_usable
from toolkit.train.tables import KINDS, Row, kind_of, read_rows

Label = Literal["safer", "better"]
COLUMNS = ("prompt", "chosen", "rejected")
EVERY_COLUMN = (
    *COLUMNS,
    "question",
    "response_0",
    "response_1",
    "is_response_0_safe",
    "is_response_1_safe",
    "safer_response_id",
    "better_response_id",
)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class KnownData:
    """A data set with a name of its own.

    Args:
        hub: its name there.
        split: of its pairs for training.
        licence: its own.
    """

    hub: str
    split: str
    licence: str


KNOWN_DATA: dict[str, KnownData] = {
    "pku-saferlhf": KnownData("PKU-Alignment/PKU-SafeRLHF", "train", "CC-BY-NC-4.0"),
    "ultrafeedback": KnownData("HuggingFaceH4/ultrafeedback_binarized", "train_prefs", "MIT"),
    "hh-rlhf": KnownData("Anthropic/hh-rlhf", "train", "MIT"),
    "spa-vl": KnownData("sqrti/SPA-VL", "train", "CC-BY-4.0"),
}


@dataclass(frozen=True)
class Source:
    """The pairs of one place, as they stand there.

    Args:
        name: a path, a known name, or a hub's.
        pairs: in order.
        report: what could not be made a pair, and which pairs are to be known about.
    """

    name: str
    pairs: list[PreferencePair]
    report: PairReport

    @property
    def sha256(self) -> str:
        """Of the pairs, in order."""
        return sha256_text(canonical_json([vars(pair) for pair in self.pairs]))

    def info(self, role: str) -> dict[str, Any]:
        """For the result's record."""
        return {"name": self.name, "role": role, "sha256": self.sha256, "pairs": len(self.pairs)}


def read_source(spec: str, label: Label = "safer") -> Source:
    """Read pairs from a file, a known data set or a hub.

    Args:
        spec: a path; a name of :data:`KNOWN_DATA`; or ``owner/name`` on the hub. The last
            two may end in ``:SPLIT``.
        label: whether PKU-SafeRLHF prefers the safer or the better answer.

    Raises:
        SafeNeuronError: no such data, or a bad row, by its place.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        rows = read_rows(path, EVERY_COLUMN)
    else:
        name, _, split = spec.partition(":")
        known = KNOWN_DATA.get(name)
        hub = known.hub if known else name
        if known is None and (kind_of(path) in KINDS or not HUB_NAME.fullmatch(name)):
            raise SafeNeuronError(
                f"no preference data {spec!r}: give a {', '.join(KINDS)} file, one of "
                f"{', '.join(KNOWN_DATA)}, or a hub name such as owner/name"
            )
        rows = _from_hub(spec, hub, split or (known.split if known else "train"))
    if not rows:
        raise SafeNeuronError(f"{spec} holds no preference pairs")
    report = PairReport()
    return Source(spec, _convert(spec, rows, label, report), report)


def read_pairs(path: Path) -> list[PreferencePair]:
    """The pairs of one file; see :func:`read_source`."""
    if not path.is_file() and kind_of(path) in KINDS:
        raise SafeNeuronError(f"cannot read the pairs {path}: no such file")
    return read_source(str(path)).pairs


def _from_hub(spec: str, hub: str, split: str) -> list[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        data = load_dataset(hub, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        told = str(error).splitlines()[0][:200]
        raise SafeNeuronError(
            f"cannot load {spec} from the hub ({told}); check its name and split, or download its "
            f"{' or '.join(KINDS)} file and give the path"
        ) from error
    columns = [name for name in EVERY_COLUMN if name in data.column_names]
    if not columns:
        return [(f"{spec}: row 1", dict.fromkeys(data.column_names))]
    rows = data.select_columns(columns)
    return [(f"{spec}: row {number}", row) for number, row in enumerate(rows, start=1)]


Converter = Callable[[Mapping[str, Any], str, Label, PairReport], PreferencePair | None]


def _convert(
    spec: str, rows: Iterable[Row], label: Label, report: PairReport
) -> list[PreferencePair]:
    found: list[PreferencePair] = []
    converter: Converter | None = None
    for where, row in rows:
        if not isinstance(row, dict):
            raise SafeNeuronError(f"{where} is not an object with {', '.join(COLUMNS)}")
        if converter is None:
            converter = _converter(row, where)
        pair = converter(row, where, label, report)
        if pair is not None:
            found.append(pair)
    if not found:
        raise SafeNeuronError(
            f"{spec}: every dialogue has several turns; pairs need one message and two answers"
        )
    return found


def _converter(row: Mapping[str, Any], where: str) -> Converter:
    """Which data it is, by the first row's columns."""
    names = set(row)
    if "response_0" in names or "response_1" in names:
        return _saferlhf
    if {"chosen", "rejected"} <= names and "prompt" not in names:
        return _spa_vl if "question" in names else _hh
    if names & set(COLUMNS):
        return _plain
    raise SafeNeuronError(
        f"{where} has the columns {', '.join(sorted(map(str, names)))[:200]}; pairs need "
        f"{', '.join(COLUMNS)}, or the columns of PKU-SafeRLHF, HH-RLHF or SPA-VL"
    )


def _need(row: Mapping[str, Any], names: Sequence[str], where: str) -> list[Any]:
    for name in names:
        if name not in row:
            raise SafeNeuronError(f"{where} has no {name!r}; pairs need {', '.join(names)}")
    return [row[name] for name in names]


def _plain(
    row: Mapping[str, Any], where: str, label: Label, report: PairReport
) -> PreferencePair | None:
    prompt, chosen, rejected = _need(row, COLUMNS, where)
    # Of a whole chat, question and answer; a longer one would lose what was said before.
    turns = ((prompt, 1), (chosen, 2), (rejected, 2))
    if any(isinstance(side, list) and len(side) > most for side, most in turns):
        report.several_turns += 1
        return None
    sides = (
        _text(side, where, name) for side, name in ((chosen, "chosen"), (rejected, "rejected"))
    )
    return PreferencePair(_text(prompt, where, "prompt"), *sides)


def _saferlhf(
    row: Mapping[str, Any], where: str, label: Label, report: PairReport
) -> PreferencePair | None:
    which = f"{label}_response_id"
    names = ("prompt", "response_0", "response_1", which)
    prompt, *answers, best = _need(row, names, where)
    # Tables that went through CSV hold "0" and "1".
    if str(best) not in ("0", "1"):
        raise SafeNeuronError(f"{where}: {which} is {best!r}; it must be 0 or 1")
    first, second = (_text(side, where, f"response_{k}") for k, side in enumerate(answers))
    chosen, rejected = (first, second) if str(best) == "0" else (second, first)
    safe = row.get(f"is_response_{best}_safe")
    report.unsafe_chosen += str(safe).lower() == "false"
    return PreferencePair(_text(prompt, where, "prompt"), chosen, rejected)


def _spa_vl(
    row: Mapping[str, Any], where: str, label: Label, report: PairReport
) -> PreferencePair | None:
    values = _need(row, ("question", "chosen", "rejected"), where)
    report.without_image += 1
    names = ("question", "chosen", "rejected")
    return PreferencePair(*(_text(v, where, n) for v, n in zip(values, names, strict=True)))


TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh(
    row: Mapping[str, Any], where: str, label: Label, report: PairReport
) -> PreferencePair | None:
    chosen, rejected = (
        _dialogue(value, where, name)
        for value, name in zip(
            _need(row, ("chosen", "rejected"), where), ("chosen", "rejected"), strict=True
        )
    )
    if len(chosen) != 2 or len(rejected) != 2 or chosen[0] != rejected[0]:
        report.several_turns += 1
        return None
    return PreferencePair(chosen[0], chosen[1], rejected[1])


def _dialogue(value: Any, where: str, name: str) -> list[str]:
    """What is said in turn, a human's first."""
    text = _text(value, where, name)
    parts = TURN.split("\n\n" + text.lstrip("\n"))
    speakers, said = parts[1::2], [part.strip() for part in parts[2::2]]
    expected = ["Human", "Assistant"] * (len(speakers) // 2 + 1)
    if parts[0] or not speakers or speakers[0] != "Human":
        raise SafeNeuronError(
            f"{where}: {name} does not begin with 'Human:'; pairs without a column prompt are "
            "read as dialogues of HH-RLHF, else give prompt, chosen and rejected"
        )
    # The data set has dialogues where somebody speaks twice on end: no single turn either.
    return said if speakers == expected[: len(speakers)] else [*said, ""]


def _text(value: Any, where: str, name: str) -> str:
    """A text, a chat's last message, or nothing where the table has none."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    try:
        content = value[-1]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise SafeNeuronError(
            f"{where}: {name} is neither a text nor a chat but {type(value).__name__}; make it one"
        ) from error
    if not isinstance(content, str):
        raise SafeNeuronError(f"{where}: the content of {name} is no text; make it one")
    return content


def mixture(
    safety: Source,
    general: Source,
    share: float,
    total: int | None,
    seed: int,
    length: Callable[[PreferencePair], int],
    max_length: int,
    report: PairReport,
) -> list[PreferencePair]:
    """Draw a mixture of usable pairs, ``share`` of it safety pairs.

    Each source is shuffled, and its pairs are drawn in that order without the unusable
    ones, so that the share is one of what trains. The same seed draws the same pairs.

    Args:
        safety: one side.
        general: the other.
        share: of the safety pairs, between 0 and 1; the paper's is 0.3.
        total: how many pairs; None for as many as the shorter side allows.
        seed: of the draw and of the order.
        length: tokens of the prompt and the longer answer.
        max_length: longer pairs are left out.
        report: counts are added to it.

    Raises:
        SafeNeuronError: too few usable pairs for ``total``, or none at all.
    """
    seen: set[PreferencePair] = set()
    drawn: list[list[PreferencePair]] = []
    wanted = [round(total * share), total - round(total * share)] if total else [None, None]
    for side, count in zip((safety, general), wanted, strict=True):
        order = random.Random(f"{seed} {len(drawn)}").sample(side.pairs, len(side.pairs))
        found = list(islice(kept(order, length, max_length, report, seen), count))
        if not found and count != 0:
            raise nothing_usable(report, max_length)
        drawn.append(found)
    if total:
        for side, found, count in zip((safety, general), drawn, wanted, strict=True):
            if count is not None and len(found) < count:
                raise SafeNeuronError(
                    f"{side.name} gives {len(found)} usable pairs where {count} of {total} are "
                    "asked for; lower --total, or change --safety-share"
                )
    else:
        most = int(min(len(drawn[0]) / share, len(drawn[1]) / (1 - share)))
        total = max(most, 1)
        drawn[0] = drawn[0][: round(total * share)]
        drawn[1] = drawn[1][: total - len(drawn[0])]
    pairs = [*drawn[0], *drawn[1]]
    random.Random(f"{seed} order").shuffle(pairs)
    report.kept = len(pairs)
    report.safety = len(drawn[0])
    return pairs
