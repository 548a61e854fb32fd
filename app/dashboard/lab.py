"""What the Prune lab reads: what can be removed from a model, and conversations kept in jobs."""

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from analysis.chat import Arm, Question, Removal, Said, highest, rankable
from analysis.store import Entry
from app.dashboard import data
from app.dashboard.data import Choice
from app.dashboard.kin import parents
from app.jobs.chat import Desk, Told
from app.jobs.folder import Job
from toolkit.errors import SafeNeuronError
from toolkit.masks import read_mask
from toolkit.neurons import NeuronSet

# Shares of all neurons that the slider stops at, finer where few are removed.
SHARES = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3),
)


@dataclass(frozen=True)
class Size:
    """How many neurons go, of how many, and in how many of the layers."""

    neurons: int
    total: int
    touched: int
    layers: int

    @classmethod
    def of(cls, neurons: NeuronSet) -> "Size":
        """The size of a set."""
        return cls(len(neurons), neurons.total, len(neurons.layers()), len(neurons.widths))

    def __str__(self) -> str:
        share = self.neurons / self.total if self.total else 0.0
        return (
            f"{self.neurons:,} of {self.total:,} neurons ({share:.2%}), in {self.touched} of "
            f"{self.layers} layers"
        )


def removal_choices(model: str) -> tuple[list[Choice], dict[str, Entry]]:
    """What can be removed from a model, its own first: studies by key, masks by path.

    Returns:
        The choices, and the studies among them.
    """
    studies = {entry.key: entry for entry in data.studies()}
    own = {model, *parents(model)}
    order = sorted(studies.values(), key=lambda entry: entry.summary["model"] not in own)
    choices = [Choice(e.key, f"ranked by {data.study_label(e)}") for e in order]
    of_studies = {str(entry.file("mask.json")) for entry in order}
    for choice in data.mask_choices():
        if choice.value not in of_studies:
            choices.append(Choice(choice.value, f"the mask {choice.label}"))
    return choices, studies


def scores_of(entry: Entry) -> list[str]:
    """The scores that a study's neurons can be ranked by."""
    return rankable(entry.file("scores.parquet"))


@st.cache_data(max_entries=256, show_spinner=False)
def _ranked_size(
    path: str, changed: int, widths: tuple[int, ...], score: str, share: float
) -> Size:
    return Size.of(highest(Path(path), widths, score, share))


def size_of(removal: Removal, studies: dict[str, Entry]) -> Size:
    """How many neurons a removal takes.

    Raises:
        SafeNeuronError: no such study, score or mask.
    """
    if removal.mask is not None:
        return Size.of(read_mask(removal.mask).neuron_set())
    entry = studies.get(removal.study or "")
    if entry is None:
        raise SafeNeuronError("no such study in the store; choose another")
    path = entry.file("scores.parquet")
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0  # `highest` says what is wrong
    widths = tuple(entry.summary["widths"])
    return _ranked_size(str(path), changed, widths, removal.score, removal.share)


@dataclass(frozen=True)
class Exchange:
    """The newest question of a conversation and how it stands."""

    job: Job
    number: str
    question: Question
    told: Told

    @property
    def earlier(self) -> list[tuple[str, dict[Arm, str]]]:
        """What was asked before, and what each arm answered."""
        first = next(iter(self.question.before.values()))
        return [
            (
                first[place].text,
                {arm: turns[place + 1].text for arm, turns in self.question.before.items()},
            )
            for place in range(0, len(first) - 1, 2)
        ]

    def carried_on(self, removal: Removal, arms: tuple[Arm, ...]) -> dict[Arm, tuple[Said, ...]]:
        """What was said before a next question; nothing where what is compared has changed."""
        same = self.told.phase == "answered" and self.question.removal == removal
        if not same or set(self.question.arms) != set(arms):
            return dict.fromkeys(arms, ())
        user = Said(role="user", text=self.question.prompt)
        return {
            arm: (
                *self.question.before[arm],
                user,
                Said(role="assistant", text=self.told.answers[arm].text),
            )
            for arm in arms
        }


def exchange(job: Job, number: str) -> Exchange:
    """A question of a session, by its number.

    Raises:
        SafeNeuronError: there is no such question.
    """
    desk = Desk(job)
    question = desk.question(number)
    if len({len(turns) for turns in question.before.values()}) > 1 or any(
        len(turns) % 2 for turns in question.before.values()
    ):
        raise SafeNeuronError(f"question {number} was edited; ask again")
    return Exchange(job, number, question, desk.told(number))


def address_of(job: Job) -> dict[str, str]:
    """The query string that restores a session's newest conversation, with what was removed."""
    told = {"run": job.id, "model": str(job.request["model"]), "dtype": str(job.request["dtype"])}
    try:
        number = next(reversed(Desk(job).numbers()), None)
        question = None if number is None else Desk(job).question(number)
    except SafeNeuronError:
        return told  # its last question was edited; the page says so
    if number is None or question is None:
        return told
    removal = question.removal
    told |= {"turn": number, "seed": str(removal.seed), "tokens": str(question.max_new_tokens)}
    told["random"] = "1" if "random" in question.arms else "0"
    if removal.mask is not None:
        return told | {"what": str(removal.mask)}
    return told | {
        "what": str(removal.study),
        "score": removal.score,
        "share": f"{removal.share:g}",
    }


def is_path(choice: str) -> bool:
    """Whether a choice of what to remove is a mask's path and no study's key."""
    return Path(choice).suffix == ".json"
