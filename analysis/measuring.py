"""Evidence that takes more than a pass for activations: what each kind of it measures."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from analysis.attacks.context import Contrast
from analysis.attacks.refusal_direction import find_direction
from analysis.captured import Captured
from analysis.robustness import Side
from analysis.scores.registry import Reads
from toolkit.capture.activations import capture_activations
from toolkit.capture.answers import own_answers
from toolkit.capture.change import require_comparable, rms_change
from toolkit.capture.gradients import token_means, tokens_after
from toolkit.capture.hooks import HooksBackend
from toolkit.capture.projections import largest_outputs
from toolkit.capture.weights import column_norms, project_columns, snip, wanda
from toolkit.forced import Forced
from toolkit.judge.refusal import judge_refusal
from toolkit.models.load import load_model
from toolkit.prompt_sets import PromptSet
from toolkit.train.pairs import shipped_refusals

Sides = Sequence[Sequence[Any]]

SCORED = 128  # prompts a side of what needs gradients or answers, as the peers take


def projections(evidence: Captured, subject: str) -> Sides:
    """Gate and up outputs of both sides, a list of ``[prompts, width]`` for each layer."""
    pair = [evidence.sets[subject], evidence.sets["harmless"]]
    count = evidence.counter("find", sum(map(len, pair)))
    layers = len(evidence.loaded.layout.sites)
    sides = []
    for prompts in pair:
        found = largest_outputs(evidence.loaded, prompts.texts, evidence.request.batch_size, count)
        sides.append(
            [
                [found[place].cpu().numpy() for place in sorted(found) if place[0] == layer]
                for layer in range(layers)
            ]
        )
    return sides


def gradients(evidence: Captured, subject: str) -> Sides:
    """Gradients and activations of both sides at the tokens after the message."""
    pair = [evidence.sets[side][:SCORED].texts for side in (subject, "harmless")]
    tail = tokens_after(evidence.loaded, pair[0][0])
    count = evidence.counter("find", sum(map(len, pair)))
    return [
        token_means(evidence.loaded, texts, tail, evidence.request.batch_size, count)
        for texts in pair
    ]


def direction(evidence: Captured, subject: str) -> Sides:
    """Output columns on the refusal direction."""
    prompts: dict[Side, PromptSet] = {
        "harmful": evidence.sets[subject],
        "harmless": evidence.sets["harmless"],
    }
    found = find_direction(
        Contrast(evidence.loaded, prompts, evidence.request.batch_size, evidence.progress)
    )
    return [project_columns(evidence.loaded, found.direction)]


def contributions(evidence: Captured, subject: str) -> Sides:
    """Norm of what each neuron adds to its layer's output, prompt by prompt."""
    loaded, texts = evidence.loaded, evidence.sets[subject].texts
    count = evidence.counter("find", len(texts))
    size = evidence.request.batch_size
    norms = capture_activations(loaded, HooksBackend(loaded), texts, "norm", size, count)
    return [[n * c for n, c in zip(norms, column_norms(loaded), strict=True)]]


def importances(method: Callable[..., Sequence[Any]]) -> Callable[[Captured, str], Sides]:
    """Weights' importances by ``method`` on the model's own answers."""

    def measure(evidence: Captured, subject: str) -> Sides:
        rows = _answers(evidence, subject)
        count = evidence.counter("find", len(rows))
        return [method(evidence.loaded, rows, evidence.request.batch_size, count)]

    return measure


def _answers(evidence: Captured, subject: str) -> list[Forced]:
    """The model's answers; where it doesn't refuse a harmful prompt, a refusal of ours.

    Wei et al.'s safety data are harmful prompts and an aligned model's refusals.
    """
    refusals = shipped_refusals()

    def refusal(place: int, answer: str) -> str:
        refused = judge_refusal(answer).verdict == "refused"
        return answer if refused else refusals[place % len(refusals)]

    texts = evidence.sets[subject][:SCORED].texts
    request = evidence.request
    return own_answers(
        evidence.loaded,
        texts,
        request.answer_tokens,
        request.batch_size,
        refusal if subject == "harmful" else None,
        evidence.counter("answer", len(texts)),
    )


def change(evidence: Captured, subject: str) -> Sides:
    """What differs between the model and its base, on the base's answers."""
    base = load_model(evidence.base_folder, dtype=getattr(torch, evidence.request.dtype))
    require_comparable(base, evidence.loaded)
    texts, request = evidence.sets[subject][:SCORED].texts, evidence.request
    count = evidence.counter("answer", len(texts))
    rows = own_answers(base, texts, request.answer_tokens, request.batch_size, None, count)
    count = evidence.counter("find", len(rows))
    return [rms_change(base, evidence.loaded, rows, request.batch_size, count)]


MEASURES: dict[Reads, Callable[[Captured, str], Sides]] = {
    "projections": projections,
    "gradients": gradients,
    "direction": direction,
    "contributions": contributions,
    "wanda": importances(wanda),
    "snip": importances(snip),
    "change": change,
}
