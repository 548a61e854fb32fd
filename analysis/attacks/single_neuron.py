"""One neuron held at the worst constant (2605.08513): gradient times gap, then a search."""

from dataclasses import dataclass

import numpy as np

from analysis.attacks.context import AttackContext, Planned, counter
from analysis.robustness import Setting
from analysis.scores.single_neuron import token_scores
from toolkit.capture.gradients import token_means, tokens_after
from toolkit.generate import answer_batch, prompt_ids
from toolkit.intervene import Intervention
from toolkit.judge.refusal import judge_refusal, refuses
from toolkit.neurons import NeuronSet
from toolkit.rows import Plan, RowPlans

SCORED = 128  # prompts a side that the gradients are averaged over
CANDIDATES = 5
MULTIPLES = (-16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 2.0)
TRIED = 32  # harmful prompts that a candidate and a constant are tried on
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Candidate:
    """A neuron, its score and its mean activation on harmful prompts where it scores most."""

    layer: int
    index: int
    score: float
    activation: float


def single_neuron(context: AttackContext) -> list[Planned]:
    """Hold the one neuron whose constant most often turns refusals into answers.

    The constants tried are multiples of the neuron's mean activation on harmful prompts.
    Candidates and constants are tried on prompts that the attack is not measured on.
    """
    candidates = rank(context)
    planned = [
        _hold(context, candidate, multiple) for candidate in candidates for multiple in MULTIPLES
    ]
    complied = _try(context, planned)
    best = max(range(len(planned)), key=lambda place: (complied[place], -place))
    tried = min(TRIED, len(context.finding["harmful"]))
    facts = planned[best].setting.parameters | {"complied_when_tried": complied[best]}
    setting = planned[best].setting.model_copy(update={"parameters": facts | {"tried": tried}})
    return [Planned(setting, planned[best].plan)]


def rank(context: AttackContext, candidates: int = CANDIDATES) -> list[Candidate]:
    """The neurons by ``G * (mean on harmless - mean on harmful)``, best first.

    G is the mean gradient of ``-log(p / (1 - p))`` for p the probability of a refusal's
    first token, on harmful prompts plus that on harmless ones; a neuron's score is its
    largest over the tokens after the message. Neurons that are louder on harmless prompts
    are left out.
    """
    tail = tokens_after(context.loaded, context.finding["harmful"].texts[0])
    sides = {}
    for side, prompts in context.finding.items():
        texts = prompts[:SCORED].texts
        count = counter(context.progress, "find", len(texts))
        sides[side] = token_means(context.loaded, texts, tail, context.request.batch_size, count)
    found: list[Candidate] = []
    for layer, (unsafe, safe) in enumerate(zip(sides["harmful"], sides["harmless"], strict=True)):
        if not context.widths[layer]:
            continue
        scores = token_scores(unsafe, safe)
        token, best = scores.argmax(axis=0), scores.max(axis=0)
        found += [
            Candidate(layer, int(i), float(best[i]), float(unsafe.activation[token[i], i]))
            for i in np.argsort(-best, kind="stable")[:candidates]
        ]
    found.sort(key=lambda c: (-c.score, c.layer, c.index))
    return [c for c in found if np.isfinite(c.score)][:candidates]


def _hold(context: AttackContext, candidate: Candidate, multiple: float) -> Planned:
    chosen = NeuronSet(context.widths, {candidate.layer: [candidate.index]})
    value = multiple * candidate.activation
    facts: dict[str, str | float | int] = {
        "layer": candidate.layer,
        "neuron": candidate.index,
        "value": value,
    }
    setting = Setting(name="SINGLE", neurons=1, parameters=facts)
    return Planned(setting, Plan((Intervention(chosen, "hold", value),)))


def _try(context: AttackContext, planned: list[Planned]) -> list[int]:
    """How many of the tried prompts each plan made the model answer."""
    loaded = context.loaded
    prompts = [prompt_ids(loaded, text) for text in context.finding["harmful"].texts[-TRIED:]]
    rows = sorted(
        (
            (len(ids), place, number)
            for place in range(len(planned))
            for number, ids in enumerate(prompts)
        ),
        key=lambda row: (row[0], row[2], row[1]),
    )
    plans = RowPlans(loaded, [p.plan for p in planned])
    complied = [0] * len(planned)
    count = counter(context.progress, "try", len(rows))
    with plans.attached():
        for start in range(0, len(rows), context.request.batch_size):
            part = rows[start : start + context.request.batch_size]
            replies = answer_batch(
                loaded,
                [prompts[number] for _, _, number in part],
                ANSWER_TOKENS,
                settled=refuses,
                plans=plans,
                plan_of=[place for _, place, _ in part],
            )
            for (_, place, _), reply in zip(part, replies, strict=True):
                judged = judge_refusal(reply.text)
                complied[place] += judged.verdict == "complied" and not reply.broken
            count(len(part))
    return complied
