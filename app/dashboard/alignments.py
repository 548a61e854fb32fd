"""What the Align page reads: alignments, their attacks, and the studies before and after."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.before_after import AFTER, BEFORE
from analysis.redistribution import Redistribution, Side, redistribution
from analysis.requests import DEFAULT_HARMFUL, DEFAULT_HARMLESS, IdentifyRequest, parse_request
from analysis.robustness import AttackResult
from analysis.rounds import RECORD, RoundsOutcome, read_rounds
from analysis.store import Entry
from app.dashboard import data
from app.jobs.events import result_of
from app.jobs.folder import Job, list_jobs, state_of
from toolkit.errors import SafeNeuronError

VERBS = ("align", "rounds")
FILES = {"before": BEFORE, "after": AFTER}


@dataclass(frozen=True)
class Pair:
    """A model, and what an alignment made of it.

    Args:
        before: the model's source.
        after: the folder of what came of it.
        mask: the mask that was frozen and is attacked with, if any.
        folder: of the job, where its own attacks are.
    """

    before: str
    after: str
    mask: str | None
    folder: Path


def alignments() -> list[Job]:
    """Every alignment and every run of rounds, newest first."""
    return [job for job in list_jobs() if job.verb in VERBS]


def finished() -> list[Path]:
    """Folders of alignments that are done, newest first: they tell this machine's pace."""
    return [job.folder for job in data.aligned()]


def pair_of(job: Job) -> Pair:
    """Before and after of a job that is done."""
    after = str((result_of(job) or {}).get("model") or job.folder)
    # A result edited by hand might name any folder; ours lie in the job's.
    if not Path(after).is_relative_to(job.folder) and not Path(after).is_relative_to(
        job.folder.resolve()
    ):
        after = str(job.folder)
    mask = job.request.get("mask")
    return Pair(
        str(job.request.get("model")), after, None if mask is None else str(mask), job.folder
    )


def rounds_of(job: Job) -> RoundsOutcome | None:
    """What is done so far of a job's rounds.

    Raises:
        SafeNeuronError: their record was edited.
    """
    if job.verb != "rounds" or not (job.folder / RECORD).is_file():
        return None
    try:
        return read_rounds(job.folder)
    except (TypeError, ValueError, KeyError) as error:
        raise SafeNeuronError(f"{job.folder / RECORD} was edited; start the rounds anew") from error


def own_attacks(pair: Pair) -> dict[str, AttackResult]:
    """The attacks that the alignment itself made, if it was asked to."""
    found = {}
    for when, name in FILES.items():
        if (pair.folder / name).is_file():
            found[when] = data.attack_result(pair.folder / name)
    return found


def attacks(pair: Pair, mask: str) -> tuple[dict[str, AttackResult], dict[str, Job]]:
    """The newest attack on each model with one mask, and the jobs that still work on one.

    Raises:
        SafeNeuronError: a file of them is damaged.
    """
    results = own_attacks(pair) if mask == pair.mask else {}
    waiting = {}
    for when, model in (("before", pair.before), ("after", pair.after)):
        jobs = data.attack_jobs(model, mask)
        if jobs and state_of(jobs[0]).state != "done":
            waiting[when] = jobs[0]
        newest = next(filter(None, map(data.attacked_by, jobs)), None)
        if newest is not None:
            results[when] = newest
    return results, waiting


def questions(result: AttackResult) -> tuple[object, ...]:
    """What an attack asked, and how: two are compared where it is the same."""
    prompts = tuple(sorted((side, info.sha256) for side, info in result.prompts.items()))
    return (*prompts, result.generation.max_new_tokens, result.judge)


def studies(pair: Pair) -> dict[str, Entry]:
    """The study the mask is from, else the newest of the model before; the newest of the result."""
    found = data.studies()
    of_mask = [e for e in found if pair.mask and e.file("mask.json") == Path(pair.mask)]
    before = [*of_mask, *(e for e in found if e.summary["model"] == pair.before)]
    after = [entry for entry in found if entry.summary["model"] == pair.after]
    sides = {"before": before, "after": after}
    return {when: entries[0] for when, entries in sides.items() if entries}


def identify_again(study: Entry | None, model: str) -> IdentifyRequest:
    """The request that finds neurons on ``model`` as a study found its own."""
    for job in list_jobs():
        made = (result_of(job) or {}).get("entry") if job.verb == "identify" else None
        if study is not None and made == study.key:
            return parse_request(IdentifyRequest, {**job.request, "model": model})
    values: dict[str, object] = {"harmful": DEFAULT_HARMFUL, "harmless": DEFAULT_HARMLESS}
    if study is not None:
        facts = study.summary
        values |= {name: facts[name] for name in ("position", "method", "harmful", "harmless")}
        known = set(IdentifyRequest.model_fields)
        values |= {name: value for name, value in facts["parameters"].items() if name in known}
    return parse_request(IdentifyRequest, {**values, "model": model})


# What maps and masses are made of; a table may have many more columns.
COLUMNS = ("layer", "neuron", "es", "sas", "delta")


def scores_of(entry: Entry) -> pd.DataFrame:
    """The columns of a study's scores that before and after are compared by.

    Raises:
        SafeNeuronError: they are gone or damaged.
    """
    path = entry.file("scores.parquet")
    try:
        return pd.read_parquet(path, columns=list(COLUMNS))
    except (OSError, ValueError) as error:
        raise SafeNeuronError(
            f"the scores of {entry.title} cannot be read; 'safeneuron cache verify' sets the "
            "damaged study aside, and identifying again makes it anew"
        ) from error


def moved(found: dict[str, Entry], results: dict[str, AttackResult], score: str) -> Redistribution:
    """What alignment moved, between the studies before and after.

    Raises:
        SafeNeuronError: a study is damaged, or the two do not compare.
    """
    swept = all(
        any(setting.name.startswith("SWEEP") for setting in result.settings)
        for result in results.values()
    )
    attacked = results if len(results) == 2 and swept else {}
    sides = {
        when: Side(
            when,
            scores_of(entry),
            data.mask_of(entry).neuron_set(),
            attacked.get(when),
        )
        for when, entry in found.items()
    }
    return redistribution(sides["before"], sides["after"], score)
