"""From the settings asked for to plans, each expensive one found once and remembered."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from analysis.attacks.adaptive import adaptive
from analysis.attacks.context import AttackContext, Planned
from analysis.attacks.neurostrike import neurostrike
from analysis.attacks.paper import again, es, full, ori, random, random_activation, sas
from analysis.attacks.refusal_direction import refusal_direction
from analysis.attacks.single_neuron import single_neuron
from analysis.attacks.strength import hold, sweep
from analysis.attacks.twinbreak import twinbreak
from analysis.requests import FROM_MASK, PARAMETERS, AttackSetting
from analysis.robustness import Setting
from analysis.store import About, Store
from toolkit.intervene import Intervention
from toolkit.neurons import NeuronSet
from toolkit.rows import Plan

Finder = Callable[[AttackContext], list[Planned]]

FINDERS: dict[AttackSetting, Finder] = {
    "ORI": ori,
    "ES": es,
    "SAS": sas,
    "FULL": full,
    "RANDOM": random,
    "RANDOM-ACTIVATION": random_activation,
    "AGAIN": again,
    "SWEEP": sweep,
    "HOLD": hold,
    "SINGLE": single_neuron,
    "NEUROSTRIKE": neurostrike,
    "TWINBREAK": twinbreak,
    "DIRECTION": refusal_direction,
    "ADAPTIVE": adaptive,
}
VERSION = 1
"""Raised when a setting finds something else than before: remembered plans are then made anew."""


def plan_settings(
    context: AttackContext, settings: tuple[AttackSetting, ...], store: Store
) -> list[Planned]:
    """What each setting does to the model, in the order asked for.

    Raises:
        SafeNeuronError: a setting needs what this mask or model does not have.
    """
    planned: list[Planned] = []
    for name in settings:
        if name in FROM_MASK:
            planned += FINDERS[name](context)
        else:
            planned += _remembered(name, context, store)
    return planned


def parameters(name: AttackSetting, context: AttackContext) -> dict[str, Any]:
    """The request's fields that a setting depends on."""
    values = context.request.model_dump(mode="json")
    return {field: values[field] for field in PARAMETERS.get(name, ())}


def _remembered(name: AttackSetting, context: AttackContext, store: Store) -> list[Planned]:
    recipe = {
        "setting": name,
        "version": VERSION,
        "parameters": parameters(name, context),
        "fingerprint": context.loaded.folder.fingerprint,
        "tokenizer": context.loaded.folder.tokenizer,
        "mask": context.mask.sha256,
        "selection": context.selection.parameters(),
        "position": context.position,
        "found_on": {side: prompts.sha256 for side, prompts in context.finding.items()},
        "dtype": context.request.dtype,
    }
    entry = store.find("plan", recipe)
    if entry is not None:
        stored = json.loads(entry.file("plans.json").read_text("utf-8"))
        return [_from_json(item, context.widths) for item in stored]
    planned = FINDERS[name](context)

    def write(scratch: Path) -> None:
        (scratch / "plans.json").write_text(json.dumps([_to_json(p) for p in planned]), "utf-8")

    store.save(
        "plan",
        recipe,
        f"what {name} does to {context.request.model}",
        {"model": context.request.model, "setting": name},
        write,
        About(
            context.request.model,
            " against ".join(found.name for found in context.finding.values()),
            name,
        ),
    )
    return planned


def _to_json(planned: Planned) -> dict[str, Any]:
    plan = planned.plan
    return {
        "setting": planned.setting.model_dump(mode="json"),
        "steps": [
            {
                "neurons": {str(k): v.tolist() for k, v in step.neurons.layers().items()},
                "action": step.action,
                "value": step.value,
            }
            for step in plan.interventions
        ],
        "direction": None if plan.direction is None else plan.direction.tolist(),
    }


def _from_json(stored: dict[str, Any], widths: list[int]) -> Planned:
    steps = tuple(
        Intervention(
            NeuronSet(widths, {int(k): v for k, v in step["neurons"].items()}),
            step["action"],
            step["value"],
        )
        for step in stored["steps"]
    )
    direction = stored["direction"]
    made = None if direction is None else torch.tensor(direction, dtype=torch.float64)
    return Planned(Setting.model_validate(stored["setting"]), Plan(steps, made))
