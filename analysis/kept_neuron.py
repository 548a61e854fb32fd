"""What the store holds of one neuron: its standing in a study's table, and what was measured.

No model is opened for it, nor looked for: the study's mask says which model and which prompts
it is about. What is missing, :func:`analysis.neuron.neuron_page` measures.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from analysis.neuron import Measured, NeuronRequest, Standing, standing
from analysis.requests import IdentifyRequest, parse_request
from analysis.scores.table import Scored
from analysis.store import Entry, Store
from toolkit.capture.moments import Vector
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile

NO_SCORES = ("layer", "neuron", "mean_harmful", "mean_harmless", "pooled_std", "delta")
ENDINGS = ("_p", "_low", "_high")


def score_names(columns: list[str]) -> list[str]:
    """The scores among a table's columns: neither places, means, p-values nor intervals."""
    known = set(columns)
    return [
        name
        for name in columns
        if name not in NO_SCORES
        and not any(
            name.endswith(end) and name.removesuffix(end) in known - set(NO_SCORES)
            for end in ENDINGS
        )
    ]


def standings(
    columns: Mapping[str, Vector], widths: list[int], layer: int, neuron: int
) -> list[Standing]:
    """Where a neuron stands under each score.

    Args:
        columns: score -> ``[neurons]``, and ``score_p`` where it has p-values.
        widths: neurons in each layer.
        layer: which.
        neuron: which of its layer.
    """
    return [
        standing(name, Scored(columns[name], columns.get(f"{name}_p")), widths, layer, neuron)
        for name in score_names(list(columns))
        if np.isfinite(columns[name][sum(widths[:layer]) + neuron])
    ]


def kept_measurement(store: Store, mask: MaskFile, layer: int, neuron: int) -> Measured | None:
    """What was measured of a neuron on a study's model and prompts; None where nothing was.

    Args:
        store: the results.
        mask: the study's.
        layer: which.
        neuron: which of its layer.
    """
    wanted: dict[str, Any] = {
        "fingerprint": mask.model.fingerprint,
        "harmful": mask.prompts.harmful.sha256,
        "harmless": mask.prompts.harmless.sha256,
        "position": mask.method.parameters.get("position", "last"),
        "layer": layer,
        "neuron": neuron,
    }
    for entry in store.entries("neuron"):
        if any(entry.recipe.get(name) != value for name, value in wanted.items()):
            continue
        whole = store.get("neuron", entry.key)
        if whole is None:
            continue  # damaged, and set aside now
        try:
            return Measured.model_validate_json(whole.file("neuron.json").read_text("utf-8"))
        except (OSError, ValidationError):
            continue
    return None


def measuring_request(study: Entry, layer: int, neuron: int) -> NeuronRequest:
    """What measures a neuron as a study looked at its model: same model, prompts and position.

    Raises:
        SafeNeuronError: the study does not say what it was asked.
    """
    facts = study.summary
    asked = facts.get("asked")
    if not isinstance(asked, dict):  # from before studies kept it: their prompts by name
        asked = {name: facts.get(name) for name in ("model", "harmful", "harmless", "position")}
    # How neurons are chosen, and by what, is nothing to the measurement.
    kept = ("model", "harmful", "harmless", "leave_out", "position", "dtype", "batch_size")
    values = {name: value for name, value in asked.items() if name in kept}
    parse_request(IdentifyRequest, values)
    if "model" not in values:
        raise SafeNeuronError("the study does not say of which model it is; identify it again")
    return parse_request(NeuronRequest, {**values, "layer": layer, "neuron": neuron})
