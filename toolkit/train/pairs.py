"""Preference pairs: what makes one usable, and pairs made from the model's own answers."""

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import islice
from typing import Any

from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import judge_refusal

Answers = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class PreferencePair:
    """A prompt, the answer to prefer and the answer to avoid."""

    prompt: str
    chosen: str
    rejected: str


@dataclass
class PairReport:
    """What became of the pairs that were offered.

    Args:
        offered: looked at, in the order drawn.
        kept: used.
        empty, equal, duplicate, too_long: left out: an empty side; chosen = rejected; seen
            already; longer than the run takes.
        no_contrast: prompts that the model can't be made to answer in two ways.
        several_turns: left out: dialogues of more than one message and its answer.
        safety: of those kept, from the safety side of a mixture, or on harmful prompts.
        unsafe_chosen: PKU-SafeRLHF rows whose preferred answer is unsafe too; used, as the
            paper says nothing of them.
        without_image: SPA-VL rows, whose image is left out.
        sources: each one's name, role, hash and number of pairs.
    """

    offered: int = 0
    kept: int = 0
    empty: int = 0
    equal: int = 0
    duplicate: int = 0
    too_long: int = 0
    no_contrast: int = 0
    several_turns: int = 0
    safety: int = 0
    unsafe_chosen: int = 0
    without_image: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the result's record."""
        return asdict(self)

    def count_source(self, other: "PairReport") -> None:
        """Add what reading a source counted."""
        for name in ("several_turns", "unsafe_chosen", "without_image"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __str__(self) -> str:
        """One line for a person."""
        reasons = {
            "with an empty side": self.empty,
            "with chosen = rejected": self.equal,
            "repeated": self.duplicate,
            "too long": self.too_long,
            "without contrast": self.no_contrast,
            "of several turns": self.several_turns,
        }
        left = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        notes = {
            "that teach refusing": self.safety,
            "safer but unsafe": self.unsafe_chosen,
            "without their image": self.without_image,
        }
        told = "".join(f"; {count} {note}" for note, count in notes.items() if count)
        return f"{self.kept} pairs used; left out: {left or 'none'}{told}"


def shipped_refusals() -> list[str]:
    """The refusals written for this project."""
    text = files("toolkit").joinpath("data/refusals.json").read_text("utf-8")
    return [str(refusal) for refusal in json.loads(text)["refusals"]]


def kept(
    pairs: Iterable[PreferencePair],
    length: Callable[[PreferencePair], int],
    max_length: int,
    report: PairReport,
    seen: set[PreferencePair],
) -> Iterator[PreferencePair]:
    """Pass on the usable pairs, and count the rest by reason.

    Args:
        pairs: as offered.
        length: tokens of the prompt and the longer answer.
        max_length: a longer pair would be cut in the middle of an answer.
        report: counts are added to it.
        seen: pairs that came before, in this or another source; grows.
    """
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
            report.kept += 1
            yield pair
        seen.add(pair)


def clean(
    pairs: Iterable[PreferencePair],
    length: Callable[[PreferencePair], int],
    max_length: int,
    report: PairReport,
    total: int | None = None,
) -> list[PreferencePair]:
    """Leave out pairs that teach nothing.

    Args:
        pairs: as offered.
        length: as for :func:`kept`.
        max_length: as for :func:`kept`.
        report: counts are added to it.
        total: how many are wanted; None for all.

    Raises:
        SafeNeuronError: none is left, or fewer than wanted.
    """
    found = list(islice(kept(pairs, length, max_length, report, set()), total))
    if not found:
        raise nothing_usable(report, max_length)
    if total is not None and len(found) < total:
        raise SafeNeuronError(
            f"{len(found)} of {report.offered} pairs are usable where {total} are asked for; "
            "lower --total"
        )
    return found


def nothing_usable(report: PairReport, max_length: int) -> SafeNeuronError:
    """The error of pairs that were all left out."""
    return SafeNeuronError(
        f"no usable preference pair among {report.offered}: {report.empty} with an empty side, "
        f"{report.equal} with chosen = rejected, {report.duplicate} repeated, "
        f"{report.too_long} longer than {max_length} tokens, {report.no_contrast} without "
        "contrast; give other pairs, or raise --max-length"
    )


def whole_sentences(text: str) -> str:
    """Drop what follows the last end of a sentence or line; all of it when there is none.

    Answers are cut at a number of tokens, and training ends each with the end token: the
    model must not learn to stop in the middle of a sentence.
    """
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|\n", text)]
    return text[: ends[-1]].strip() if ends else text.strip()


def own_compliance(answer: Answers, answer_without: Answers) -> Answers:
    """What a model says; where it refuses, what it says without its safety neurons.

    Args:
        answer: the model's greedy answers.
        answer_without: the same with the safety neurons removed.
    """

    def comply(texts: Sequence[str]) -> list[str]:
        own = dict(zip(texts, answer(texts), strict=True))
        refused = [text for text, said in own.items() if judge_refusal(said).verdict != "complied"]
        own |= dict(zip(refused, answer_without(refused), strict=True)) if refused else {}
        return [own[text] for text in texts]

    return comply


def make_pairs(
    harmful: Sequence[str],
    harmless: Sequence[str],
    answer: Answers,
    comply: Answers,
    refusals: Sequence[str],
    seed: int,
    report: PairReport,
) -> list[PreferencePair]:
    """Make pairs from answers.

    A harmful prompt prefers a refusal to compliance; where there is none there is no
    contrast, and the prompt is left out and counted. A harmless prompt prefers the model's
    own answer to a refusal, so that it does not learn to refuse everything.

    Args:
        harmful: prompts to refuse.
        harmless: prompts to answer.
        answer: the model's greedy answers.
        comply: answers to harmful prompts, the model's (:func:`own_compliance`) or another's.
        refusals: what a refusal may say.
        seed: of the draw of refusals and the order of the pairs.
        report: counts prompts without contrast.
    """
    generator = random.Random(seed)
    complied = dict(zip(harmful, comply(harmful), strict=True))
    pairs = []
    for text, said in complied.items():
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
