"""Divergence and perplexity of every setting, over the whole model's answers as text.

What is measured is said in :mod:`analysis.costs`. A batch of answers is read by the whole
model once and then under each plan; each plan's sums are written down at once, so that a
killed attack measures nothing twice.
"""

import math
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import torch
from torch import Tensor

from analysis.attacks.context import AttackContext, Planned, counter
from analysis.attacks.run import answer_all
from analysis.costs import Cost, Sums, costs_of
from analysis.journal import append_line, read_lines
from analysis.robustness import Setting
from toolkit.forced import Forced, answer_logits
from toolkit.generate import prompt_ids
from toolkit.prompt_sets import PromptSet
from toolkit.rows import Plan

MEASURED = "costs.jsonl"
WHOLE = "whole"
LOGITS = 256 << 20  # bytes that the logits of one batch may take, in float32

Done = dict[tuple[int, int], Sums]
"""By the places of setting and prompt."""


def measure_costs(
    context: AttackContext, planned: list[Planned], prompts: PromptSet, folder: Path
) -> list[Cost]:
    """Measure what every setting costs.

    The whole model (ORI) is among the costs whether or not it was asked for: a perplexity
    is read against it.

    Args:
        context: the model and the request.
        planned: the settings.
        prompts: the harmless ones. Those too long for the model and those it answers with
            nothing are left out.
        folder: where finished batches are written down; read first, to go on from there.
    """
    if all(found.setting.name != "ORI" for found in planned):
        planned = [*planned, Planned(Setting(name="ORI", neurons=0), Plan())]
    forced = _whole_answers(context, prompts, folder / WHOLE)
    done: Done = {
        (setting, index): Sums(*sums)
        for setting, rows in read_lines(folder / MEASURED)
        for index, sums in rows
    }
    count = counter(context.progress, "costs", len(forced) * len(planned))
    count(len(done))
    for batch in _batches(context, forced):
        for part in _measured(context, planned, batch, forced, done, folder / MEASURED):
            count(part)
    settings = [found.setting for found in planned]
    places = range(len(prompts))
    return costs_of(settings, [[done.get((s, i)) for i in places] for s in range(len(settings))])


def _whole_answers(context: AttackContext, prompts: PromptSet, folder: Path) -> dict[int, Forced]:
    """The prompts that have answers, by place, in the order of their lengths."""
    loaded, tokens = context.loaded, context.request.cost_tokens
    asked = context.request.model_copy(update={"max_new_tokens": tokens, "keep_responses": True})
    answers = answer_all(
        replace(context, request=asked),
        [Planned(Setting(name="ORI", neurons=0), Plan())],
        {"harmless": prompts},
        folder,
        settled=None,
        stage="answer",
    )
    found = {}
    for answer in answers:
        # Token by token a text may be longer than it was when it was generated.
        ids = loaded.tokenizer(answer.response or "", add_special_tokens=False)["input_ids"]
        if ids:
            prompt = prompt_ids(loaded, prompts.texts[answer.index])
            found[answer.index] = Forced(prompt, list(ids[:tokens]))
    order = sorted(found, key=lambda i: (len(found[i].prompt) + len(found[i].answer), i))
    return {index: found[index] for index in order}


def _batches(context: AttackContext, forced: dict[int, Forced]) -> Iterator[list[int]]:
    """Places in batches whose logits fit :data:`LOGITS`."""
    vocabulary = context.loaded.model.config.get_text_config().vocab_size
    fits = LOGITS // (4 * vocabulary * context.request.cost_tokens)
    size = max(1, min(context.request.batch_size, fits))
    places = list(forced)
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _measured(
    context: AttackContext,
    planned: list[Planned],
    batch: list[int],
    forced: dict[int, Forced],
    done: Done,
    path: Path,
) -> Iterator[int]:
    """Measure what is left of a batch, in halves where memory does not hold it whole."""
    try:
        yield from _measure(context, planned, batch, forced, done, path)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    else:
        return
    # Outside of the except block, where the failed batch's tensors would still be held.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from _measured(context, planned, half, forced, done, path)


def _measure(
    context: AttackContext,
    planned: list[Planned],
    batch: list[int],
    forced: dict[int, Forced],
    done: Done,
    path: Path,
) -> Iterator[int]:
    left = [s for s in range(len(planned)) if any((s, index) not in done for index in batch)]
    if not left:
        return
    rows = [forced[index] for index in batch]
    whole = answer_logits(context.loaded, rows)
    for setting in left:
        plan = planned[setting].plan
        pruned = whole
        if not plan.empty:
            with context.under(plan):
                pruned = answer_logits(context.loaded, rows)
        sums = [
            compare_logits(before, after, row.answer)
            for before, after, row in zip(whole, pruned, rows, strict=True)
        ]
        append_line(
            path,
            [setting, [[i, astuple(found)] for i, found in zip(batch, sums, strict=True)]],
        )
        done |= {(setting, i): found for i, found in zip(batch, sums, strict=True)}
        yield len(batch)


def compare_logits(whole: Tensor, pruned: Tensor, answer: list[int]) -> Sums:
    """Sums over one answer, in float64.

    Args:
        whole: logits of the model as it is, ``[tokens, vocabulary]``.
        pruned: logits under a plan, of the same shape.
        answer: the token that each row predicts, ``[tokens]``.
    """
    p, q = whole.double().log_softmax(dim=-1), pruned.double().log_softmax(dim=-1)
    # A token that the model forbids has probability zero, and adds nothing.
    apart = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0)
    said = torch.tensor(answer, device=q.device)[:, None]
    kl, nll = float(apart.sum()), -float(q.gather(-1, said).sum())
    if not (math.isfinite(kl) and math.isfinite(nll)):
        return Sums(len(answer), 0.0, 0.0, broken=True)
    return Sums(len(answer), max(kl, 0.0), nll)
