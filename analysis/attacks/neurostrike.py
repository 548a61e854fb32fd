"""NeuroStrike (2509.11864): a linear probe on each projection, its large weights removed."""

import numpy as np
import torch

from analysis.attacks.context import AttackContext, Planned, counter, removal
from analysis.robustness import Side
from analysis.scores.neurostrike import EPOCHS, TAU, probe_score
from toolkit.capture.projections import largest_outputs
from toolkit.neurons import NeuronSet

SIDES: tuple[Side, Side] = ("harmful", "harmless")


def neurostrike(context: AttackContext) -> list[Planned]:
    """Zero the gate and up outputs that a probe for harmfulness leans on.

    Zeroing output j of gate or up zeroes neuron j, since the activation functions of all
    supported families are zero at zero; so the set removed is the union over projections.
    """
    total = sum(len(prompts) for prompts in context.finding.values())
    count = counter(context.progress, "find", total)
    unsafe, safe = (
        largest_outputs(
            context.loaded, context.finding[side].texts, context.request.batch_size, count
        )
        for side in SIDES
    )
    chosen = [np.zeros(width, dtype=np.bool_) for width in context.widths]
    kept = {"gate": 0, "up": 0}
    count = counter(context.progress, "probe", len(unsafe))
    for (layer, which), values in unsafe.items():
        both = torch.cat([values, safe[layer, which]])
        labels = torch.zeros(len(both), device=both.device)
        labels[: len(values)] = 1.0
        selected = probe_score(both, labels, EPOCHS) > TAU
        chosen[layer] |= selected
        kept["gate" if which == 0 else "up"] += int(selected.sum())
        count(1)
    found = NeuronSet.from_masks(chosen)
    return [removal("NEUROSTRIKE", found, tau=TAU, by_gate=kept["gate"], by_up=kept["up"])]
