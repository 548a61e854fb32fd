"""What the pages read: the store, the job folders, the masks; cached under their keys."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import streamlit as st

from analysis.robustness import AttackResult, read_attack
from analysis.store import Entry, Store
from app.jobs.events import result_of
from app.jobs.folder import ID, Job, list_jobs, state_of
from toolkit.errors import SafeNeuronError
from toolkit.home import home
from toolkit.masks import MaskFile, read_mask
from toolkit.models.sources import EMBEDDED


@dataclass(frozen=True)
class Choice:
    """One thing to choose: its value and how it is called."""

    value: str
    label: str


def studies() -> list[Entry]:
    """Every identification, newest first."""
    return Store().entries("identify")


def attacks() -> list[Entry]:
    """Every attack, newest first."""
    return Store().entries("attack")


@st.cache_data(max_entries=4, show_spinner=False)
def _scores(path: str, changed: int) -> pd.DataFrame:
    return pd.read_parquet(path)


def scores(entry: Entry) -> pd.DataFrame:
    """A study's score table.

    Raises:
        SafeNeuronError: it is gone or damaged.
    """
    path = entry.file("scores.parquet")
    try:
        return _scores(str(path), path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise SafeNeuronError(
            f"the scores of {entry.title} cannot be read; 'safeneuron cache verify' sets the "
            "damaged study aside, and identifying again makes it anew"
        ) from error


def mask_of(entry: Entry) -> MaskFile:
    """A study's mask."""
    return read_mask(entry.file("mask.json"))


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


def model_label(source: str) -> str:
    """A model's name, short: a path's last part; a job's folder as what it is."""
    name = Path(source).name if "/" in source and Path(source).is_absolute() else source
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


def job_label(job: Job) -> str:
    """A job in one line."""
    return f"{job.created:%Y-%m-%d %H:%M} · {job.verb} · {model_label(job.request['model'])}"


def aligned() -> list[Job]:
    """Finished alignments, newest first."""
    return [job for job in list_jobs() if job.verb == "align" and state_of(job).state == "done"]


def model_choices() -> list[Choice]:
    """Models at hand: those of the studies, of finished alignments, and the embedded ones."""
    sources = [str(entry.summary["model"]) for entry in studies()]
    sources += [str(job.folder) for job in aligned()] + list(EMBEDDED)
    return [Choice(source, model_label(source)) for source in dict.fromkeys(sources)]


def mask_choices() -> list[Choice]:
    """Masks at hand: the studies' and those kept from the map."""
    found = [Choice(str(e.file("mask.json")), study_label(e)) for e in studies()]
    for path in sorted((home() / "masks").glob("*.json"), reverse=True):
        try:
            mask = read_mask(path)
        except SafeNeuronError:
            continue
        label = f"kept from the map · {mask.method.name} · {mask.count:,} neurons"
        found.append(Choice(str(path), f"{label} of {model_label(mask.model.source)}"))
    return found


def keep_mask(mask: MaskFile) -> Path:
    """Write a mask chosen on the map where attacks and alignments find it."""
    path = home() / "masks" / f"{mask.sha256[:16]}.json"
    mask.write(path)
    return path


def attack_jobs(model: str, mask: str) -> list[Job]:
    """Attack jobs on a model with a mask, newest first."""
    wanted = (model, mask)
    return [
        job
        for job in list_jobs()
        if job.verb == "attack" and (job.request["model"], job.request["mask"]) == wanted
    ]


def attacked_by(job: Job) -> AttackResult | None:
    """What a finished attack job counted."""
    result = result_of(job)
    if state_of(job).state != "done" or result is None:
        return None
    return attack_result(Path(result["attack"]))
