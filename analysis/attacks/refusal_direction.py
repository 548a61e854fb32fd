"""Refusal-direction ablation (Arditi et al. 2024): the yardstick that is not about neurons."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.attacks.context import AttackContext, Contrast, Planned, counter
from analysis.robustness import Setting
from toolkit.capture.gradients import tokens_after
from toolkit.capture.residual import mean_residual
from toolkit.errors import SafeNeuronError
from toolkit.generate import next_token_logits, prompt_ids
from toolkit.prompt_sets import PromptSet
from toolkit.refusal_odds import refusal_score, refusal_tokens
from toolkit.rows import Plan, RowPlans

AVERAGED = 128  # prompts a side
TRIED = 32  # prompts a side that candidates are chosen on
SHORTLIST = 8
DEEPEST = 0.8  # of the layers
KL_LIMIT = 0.1


@dataclass(frozen=True)
class Candidate:
    """A difference of means: after which layer, and how many tokens from the end."""

    layer: int
    token: int
    direction: Tensor


@dataclass(frozen=True)
class Chosen(Candidate):
    """The candidate that was chosen, and what its ablation does."""

    refusal_score: float
    divergence: float


def refusal_direction(context: AttackContext) -> list[Planned]:
    """Project the best candidate direction out of the residual stream everywhere.

    Raises:
        SafeNeuronError: no direction can be ablated within the allowed divergence.
    """
    best = find_direction(context.contrast)
    facts: dict[str, str | float | int] = {
        "layer": best.layer,
        "token": best.token,
        "refusal_score": best.refusal_score,
        "divergence": best.divergence,
    }
    setting = Setting(name="DIRECTION", neurons=0, parameters=facts)
    return [Planned(setting, Plan(direction=best.direction))]


def find_direction(context: Contrast) -> Chosen:
    """Choose the refusal direction.

    The candidates are the differences of mean residual stream, harmful minus harmless,
    after each layer of the first four fifths and at each token after the message. Chosen
    is the one whose ablation lowers the refusal score most on harmful prompts while the
    next token on harmless ones stays within a divergence of 0.1. A few prompts rank the
    candidates, and the first eight of that ranking that hold one within it decide.

    Raises:
        SafeNeuronError: no direction can be ablated within that divergence.
    """
    candidates = difference_directions(context)
    harmful = context.prompts["harmful"][-TRIED:]
    harmless = context.prompts["harmless"][-TRIED:]
    count = counter(context.progress, "try", 2 * len(candidates))
    few = _scores(context, candidates, harmful[: max(1, len(harmful) // 4)])
    count(len(candidates))
    order = few.argsort(stable=True).tolist()
    least = float("inf")
    for start in range(0, len(order), SHORTLIST):
        shortlist = [candidates[place] for place in order[start : start + SHORTLIST]]
        divergence = _divergence(context, shortlist, harmless)
        count(len(shortlist))
        least = min(least, float(divergence.min()))
        allowed = [place for place, kl in enumerate(divergence) if float(kl) <= KL_LIMIT]
        if not allowed:
            continue
        scores = _scores(context, [shortlist[place] for place in allowed], harmful)
        score, place = min(zip(map(float, scores), allowed, strict=True))
        best = shortlist[place]
        return Chosen(best.layer, best.token, best.direction, score, float(divergence[place]))
    raise SafeNeuronError(
        "no refusal direction leaves harmless prompts as they were (divergence at most "
        f"{KL_LIMIT}; the best has {least:.2f})"
    )


def difference_directions(context: Contrast) -> list[Candidate]:
    """Differences of mean residual stream at every layer and token after the message."""
    tail = tokens_after(context.loaded, context.prompts["harmful"].texts[0])
    means = {}
    for side, prompts in context.prompts.items():
        texts = prompts[:AVERAGED].texts
        count = counter(context.progress, "find", len(texts))
        means[side] = mean_residual(context.loaded, texts, tail, context.batch_size, count)
    deepest = max(1, int(DEEPEST * len(context.loaded.layout.sites)))
    return [
        Candidate(layer, token - tail, direction)
        for layer in range(deepest)
        for token in range(tail)
        if (direction := means["harmful"][layer][token] - means["harmless"][layer][token]).any()
        and torch.isfinite(direction).all()
    ]


def _scores(context: Contrast, candidates: list[Candidate], prompts: PromptSet) -> Tensor:
    """Mean refusal score with each candidate ablated, ``[candidates]``."""
    tokens = refusal_tokens(context.loaded)
    logits = _ablated(context, [Plan(direction=c.direction) for c in candidates], prompts)
    return torch.stack([refusal_score(rows, tokens).mean().cpu() for rows in logits])


def _divergence(context: Contrast, candidates: list[Candidate], prompts: PromptSet) -> Tensor:
    """Mean KL of the next token, whole against ablated, on harmless prompts, ``[candidates]``."""
    plans = [Plan(), *(Plan(direction=c.direction) for c in candidates)]
    whole, *others = _ablated(context, plans, prompts)
    logs = whole.log_softmax(dim=-1)
    apart = [(logs.exp() * (logs - other.log_softmax(dim=-1))).sum(dim=-1) for other in others]
    return torch.stack([kl.mean().cpu() for kl in apart])


def _ablated(context: Contrast, planned: list[Plan], prompts: PromptSet) -> Iterator[Tensor]:
    """Next-token logits of all prompts under each plan, ``[prompts, vocabulary]`` each."""
    ids = sorted((prompt_ids(context.loaded, text) for text in prompts.texts), key=len)
    plans = RowPlans(context.loaded, planned)
    size = context.batch_size
    with plans.attached():
        for place in range(len(planned)):
            yield torch.cat(
                [
                    next_token_logits(
                        context.loaded,
                        ids[start : start + size],
                        plans,
                        [place] * len(ids[start : start + size]),
                    )
                    for start in range(0, len(ids), size)
                ]
            )
