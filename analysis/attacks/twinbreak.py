"""TwinBreak (USENIX Security 2025): what differs most between twin prompts, removed in rounds."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analysis.attacks.context import AttackContext, Planned, counter, removal
from toolkit.capture.sites import projection_outputs
from toolkit.intervene import Intervention
from toolkit.neurons import NeuronSet
from toolkit.prompt_sets import PromptSet
from toolkit.rows import Plan

LAST_TOKENS = 6
TOP_TOKENS = 5
SHARE = 0.01
UTILITY_SHARE = 0.001
ROUNDS = 5
PAIRS = 100

Means = dict[tuple[int, int], Tensor]
"""Mean output of each projection at each of the last tokens, ``[tokens, width]``."""


def twins(harmful: PromptSet, harmless: PromptSet, limit: int = PAIRS) -> list[tuple[str, str]]:
    """Pair prompts that share most words (Jaccard), each used once, best pairs first.

    The paper's own hundred pairs were written for it; any two sets can be paired so.
    """
    words = [[frozenset(text.lower().split()) for text in s.texts] for s in (harmful, harmless)]
    scored = sorted(
        (
            (-len(a & b) / len(a | b), i, j)
            for i, a in enumerate(words[0])
            for j, b in enumerate(words[1])
        ),
    )
    used: tuple[set[int], set[int]] = (set(), set())
    pairs: list[tuple[str, str]] = []
    for _, i, j in scored:
        if i not in used[0] and j not in used[1] and len(pairs) < limit:
            used[0].add(i)
            used[1].add(j)
            pairs.append((harmful.texts[i], harmless.texts[j]))
    return pairs


def twinbreak(context: AttackContext) -> list[Planned]:
    """Prune the largest differences in five rounds of one per cent, sparing utility."""
    pairs = twins(context.finding["harmful"], context.finding["harmless"])
    harmful, harmless = [a for a, _ in pairs], [b for _, b in pairs]
    count = counter(context.progress, "find", (2 * ROUNDS + 1) * len(pairs))
    half = len(harmless) // 2
    spared = largest(
        differences(_means(context, harmless[:half]), _means(context, harmless[half:])),
        UTILITY_SHARE,
    )
    count(len(pairs))
    removed = NeuronSet.empty(context.widths)
    for _ in range(ROUNDS):
        with context.under(Plan((Intervention(removed),))):
            found = differences(_means(context, harmful), _means(context, harmless))
        count(2 * len(pairs))
        for place, values in found.items():
            values[spared[place]] = -np.inf
            values[removed.layer(place[0])] = -np.inf
        masks = removed.masks()
        for (layer, _), chosen in largest(found, SHARE).items():
            # The first and the last layer are left alone, as the paper has it.
            if 0 < layer < len(context.widths) - 1:
                masks[layer][chosen] = True
        removed = NeuronSet.from_masks(masks)
    return [removal("TWINBREAK", removed, rounds=ROUNDS, share=SHARE, pairs=len(pairs))]


def _means(context: AttackContext, texts: list[str]) -> Means:
    sums: Means = {}
    for batch in context.batches(texts):
        # The last tokens of each row, whatever its length: ``[batch, LAST_TOKENS]``.
        ends = batch.attention.sum(dim=1, keepdim=True)
        back = torch.arange(LAST_TOKENS, 0, -1, device=ends.device)
        places = (ends - back).clamp(min=0)

        def sink(layer: int, which: int, output: Tensor, places: Tensor = places) -> None:
            rows = torch.arange(len(places), device=places.device)[:, None]
            part = output[rows, places].float().sum(dim=0)
            key = (layer, which)
            sums[key] = sums[key] + part if key in sums else part.clone()

        projection_outputs(context.loaded, batch, sink)
    return {key: value / max(len(texts), 1) for key, value in sums.items()}


def differences(first: Means, second: Means) -> dict[tuple[int, int], npt.NDArray[np.float64]]:
    """How far each output's means lie apart where they differ most, ``[width]``."""
    found = {}
    for key, values in first.items():
        apart = values - second[key]
        strongest = apart.norm(dim=1).topk(min(TOP_TOKENS, len(apart))).indices
        found[key] = apart[strongest].mean(dim=0).abs().double().cpu().numpy()
    return found


def largest(
    values: dict[tuple[int, int], npt.NDArray[np.float64]], share: float
) -> dict[tuple[int, int], npt.NDArray[np.int64]]:
    """The top share of each projection's outputs, at least one."""
    chosen = {}
    for key, scores in values.items():
        order = np.argsort(-scores, kind="stable")[: max(1, round(share * len(scores)))]
        chosen[key] = order[np.isfinite(scores[order])]
    return chosen
