"""What the pages read: the store, the job folders, the masks; cached under their keys."""

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from analysis.kept_neuron import measuring_request
from analysis.mask_library import Card, cards, keep
from analysis.robustness import AttackResult, read_attack
from analysis.store import Entry, Store
from app.jobs.events import result_of
from app.jobs.folder import ID, Job, list_jobs, state_of
from toolkit.errors import SafeNeuronError
from toolkit.home import home
from toolkit.masks import MaskFile, read_mask
from toolkit.models.sources import EMBEDDED

# What pages show of an entry's summary.
Shape = dict[str, type | tuple[type, ...]]
STUDY: Shape = {"model": str, "architecture": str, "method": str, "position": str}
STUDY |= {"count": int, "fraction": (int, float), "widths": list, "parameters": dict}
STUDY |= {"harmful": str, "harmless": str}
ATTACK: Shape = {"model": str, "mask": str, "count": int, "fraction": (int, float)}
SHOWN_FOR = 30  # seconds that the models there are, are kept


@dataclass(frozen=True)
class Choice:
    """One thing to choose: its value and how it is called."""

    value: str
    label: str


def studies() -> list[Entry]:
    """Every identification that can be shown, newest first."""
    return [entry for entry in Store().entries("identify") if _shaped(entry, STUDY)]


def study_of(key: str) -> Entry | None:
    """The study of a key, or None."""
    return next((entry for entry in studies() if entry.key == key), None)


def study_measured(job: Job) -> Entry | None:
    """The newest study whose neuron a job measures: it asks for just what the study's page does."""
    place = job.request["layer"], job.request["neuron"]
    for study in studies():
        try:
            asked = measuring_request(study, *place)
        except SafeNeuronError:
            continue  # it does not say what it was asked
        if asked.model_dump(mode="json") == job.request:
            return study
    return None


def attacks() -> list[Entry]:
    """Every attack that can be shown, newest first."""
    return [entry for entry in Store().entries("attack") if _shaped(entry, ATTACK)]


def _shaped(entry: Entry, fields: Shape) -> bool:
    """Whether an entry's summary has what pages show of it; one edited by hand may not."""
    facts = entry.summary
    if not isinstance(facts, dict) or not isinstance(entry.title, str):
        return False
    shaped = all(isinstance(facts.get(name), kind) for name, kind in fields.items())
    return shaped and all(isinstance(width, int) for width in facts.get("widths", ()))


@st.cache_resource(max_entries=16, show_spinner=False)
def _mask(path: str, changed: int) -> MaskFile:
    return read_mask(Path(path))


def mask_of(entry: Entry) -> MaskFile:
    """A study's mask, shared by all sessions: it is not to be changed.

    Raises:
        SafeNeuronError: it is gone or damaged.
    """
    path = entry.file("mask.json")
    try:
        return _mask(str(path), path.stat().st_mtime_ns)
    except OSError as error:
        raise SafeNeuronError(f"the mask of {entry.title} is gone; identify again") from error


@st.cache_data(max_entries=32, show_spinner=False)
def _attack(path: str, changed: int) -> AttackResult:
    return read_attack(Path(path))


def attack_result(path: Path) -> AttackResult:
    """An attack file.

    Raises:
        SafeNeuronError: it is gone or damaged.
    """
    try:
        return _attack(str(path), path.stat().st_mtime_ns)
    except OSError as error:
        raise SafeNeuronError(f"{path.name} is gone; run the attack again") from error


@st.cache_data(ttl=SHOWN_FOR, show_spinner=False)
def _paths(root: str) -> list[tuple[str, ...]]:
    """The folders and files of all models that a page may name, each in its parts."""
    sources = {card.source for card in cards()}
    sources |= {str(entry.summary["model"]) for entry in (*studies(), *attacks())}
    for job in list_jobs():
        sources |= {str(job.folder), str(job.request.get("model"))}
    return [Path(source).parts for source in sources]


def model_label(source: str) -> str:
    """A model's name, short: a path's last parts, as many as tell it from other models.

    A job's folder is called what it is.
    """
    if not Path(source).is_absolute():
        return source
    own = Path(source).parts
    others = [parts for parts in _paths(str(home())) if parts != own]
    name = next(
        "/".join(own[-depth:])
        for depth in range(1, len(own) + 1)
        if all(parts[-depth:] != own[-depth:] for parts in others)
    )
    return f"aligned {name}" if ID.fullmatch(name) else name


def study_label(entry: Entry) -> str:
    """A study in one line."""
    facts = entry.summary
    return (
        f"{model_label(facts['model'])} · {facts['method']} · {facts['count']:,} neurons "
        f"({facts['fraction']:.2%}) · {facts['position']} token · {entry.created:%Y-%m-%d %H:%M}"
    )


def attack_label(entry: Entry) -> str:
    """An attack in one line."""
    facts = entry.summary
    return (
        f"{model_label(facts['model'])} · mask {facts['mask'][:8]} ({facts['count']:,} neurons) "
        f"· {entry.created:%Y-%m-%d %H:%M}"
    )


def attack_names(entries: list[Entry]) -> list[str]:
    """What attacks are called beside each other: by model, and of one model by date."""
    names = [model_label(entry.summary["model"]) for entry in entries]
    dated = [
        f"{name}, {entry.created:%Y-%m-%d %H:%M}" if names.count(name) > 1 else name
        for name, entry in zip(names, entries, strict=True)
    ]
    return [
        f"{name} ({entry.key[:6]})" if dated.count(name) > 1 else name
        for name, entry in zip(dated, entries, strict=True)
    ]


def job_label(job: Job) -> str:
    """A job in one line."""
    return f"{job.created:%Y-%m-%d %H:%M} · {job.verb} · {job_model(job)}"


def job_model(job: Job) -> str:
    """The name of the model that a job works on."""
    return model_label(str(job.request.get("model", "no model")))


def aligned() -> list[Job]:
    """Finished alignments, newest first."""
    return [job for job in list_jobs() if job.verb == "align" and state_of(job).state == "done"]


def model_choices() -> list[Choice]:
    """Models at hand: those of the studies, of finished alignments, and the embedded ones."""
    sources = [str(entry.summary["model"]) for entry in studies()]
    # The one that refuses stands first: of one that complies there is little to find.
    sources += [str(job.folder) for job in aligned()] + list(reversed(EMBEDDED))
    return [Choice(source, _said(source)) for source in dict.fromkeys(sources)]


def _said(source: str) -> str:
    """A model's name, and of an embedded one what it does."""
    known = EMBEDDED.get(source)
    does = "" if known is None else f" · {known.description.partition(':')[0]}"
    return model_label(source) + does


def mask_choices() -> list[Choice]:
    """Masks at hand: a model's working one, those kept in the library, and the studies'."""
    return [Choice(str(card.path), mask_label(card)) for card in cards() if card.count]


def mask_label(card: Card) -> str:
    """A mask in one line."""
    origin = {"working": "working mask", "kept": "kept", "study": "study"}[card.origin]
    return (
        f"{origin} · {card.method} · {card.count:,} neurons ({card.fraction:.2%}) of "
        f"{model_label(card.source)} · {card.sha256[:8]}"
    )


def keep_mask(mask: MaskFile) -> Path:
    """Write a mask chosen on the map where attacks and alignments find it."""
    return keep(mask)


def attacks_on(fingerprint: str) -> list[Entry]:
    """Every attack on a model, newest first."""
    return [entry for entry in attacks() if entry.summary.get("fingerprint") == fingerprint]


def attack_jobs(model: str, mask: str) -> list[Job]:
    """Attack jobs on a model with a mask, newest first."""
    wanted = (model, mask)
    return [
        job
        for job in list_jobs()
        if job.verb == "attack" and (job.request.get("model"), job.request.get("mask")) == wanted
    ]


def attacked_by(job: Job) -> AttackResult | None:
    """What a finished attack job counted."""
    made = (result_of(job) or {}).get("entry")
    if state_of(job).state != "done" or made is None:
        return None
    # By its key: a path that the job's file names might lead out of the store.
    entry = next((entry for entry in attacks() if entry.key == made), None)
    return None if entry is None else attack_result(entry.file("attack.json"))
