"""The engine: settings that share prompts share batches, and a killed attack goes on.

Every row of a batch has its own setting. The batches are laid out before the first is
run, and each is written down when its answers are judged; so a second call runs what is
left, in the same batches, and ends with what an unbroken call would have.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from analysis.attacks.context import AttackContext, Planned, counter
from analysis.attacks.judging import Asked, Judge, Judged, judge_refusals
from analysis.journal import append_line, read_lines
from analysis.robustness import Answer, Harm, HarmTold, Side
from toolkit.generate import Reply, SharedPrefix, answer_batch, prompt_ids
from toolkit.judge.refusal import refuses
from toolkit.models.load import context_length
from toolkit.prompt_sets import PromptSet
from toolkit.rows import RowPlans

JUDGED = "judged.jsonl"
HARM: dict[bool | None, Harm] = {True: "harmful", False: "harmless", None: "unparsed"}


@dataclass(frozen=True)
class Row:
    """One prompt under one setting; ``tokens`` is the prompt's length."""

    setting: int
    side: Side
    index: int
    tokens: int


def layout_rows(lengths: dict[Side, list[int]], settings: int) -> list[Row]:
    """Every prompt under every setting, by length, the settings of one prompt together."""
    return [
        Row(setting, side, index, tokens)
        for tokens, side, index in sorted(
            (tokens, side, index)
            for side, found in lengths.items()
            for index, tokens in enumerate(found)
        )
        for setting in range(settings)
    ]


def answer_all(
    context: AttackContext,
    planned: list[Planned],
    prompts: dict[Side, PromptSet],
    folder: Path,
    judge: Judge = judge_refusals,
    settled: Callable[[str], bool] | None = refuses,
    stage: str = "attack",
) -> list[Answer]:
    """Answer and judge every prompt under every setting.

    Args:
        context: the model and the request.
        planned: the settings.
        prompts: both sides' prompts.
        folder: where judged batches are written down; read first, to go on from there.
        judge: judges each batch.
        settled: cuts an answer, as for :func:`toolkit.generate.generate`.
        stage: of the progress.

    Returns:
        One answer for each setting, side and prompt, in that order.
    """
    loaded, request = context.loaded, context.request
    ids = {s: [prompt_ids(loaded, text) for text in p.texts] for s, p in prompts.items()}
    longest = context_length(loaded.model.config)
    rows = layout_rows({s: [len(i) for i in found] for s, found in ids.items()}, len(planned))
    too_long = [
        row for row in rows if longest is not None and row.tokens + request.max_new_tokens > longest
    ]
    skipped = set(too_long)
    rows = [row for row in rows if row not in skipped]
    why = f"the prompt and {request.max_new_tokens} tokens exceed the model's {longest}"
    answers = {row: _skipped(planned, row, why) for row in too_long}

    count = counter(context.progress, stage, len(rows))
    earlier = _read_judged(folder, rows)
    answers |= earlier
    count(len(earlier))
    plans = RowPlans(loaded, [p.plan for p in planned])
    with plans.attached():
        prefix = SharedPrefix(loaded, [i for found in ids.values() for i in found], plans)
        for batch in _batches(rows, request.batch_size):
            if batch[0] in answers:
                continue
            fresh: dict[Row, Answer] = {}
            for part, replies in _answered(context, batch, ids, plans, prefix, settled):
                asked = [Asked(row.side, prompts[row.side].texts[row.index]) for row in part]
                with plans.paused():
                    judged = judge(asked, replies)
                for row, reply, verdict in zip(part, replies, judged, strict=True):
                    fresh[row] = _answer(planned, row, reply, verdict, request.keep_responses)
            _write_judged(folder, fresh)
            answers |= fresh
            count(len(batch))
    order = sorted(answers, key=lambda row: (row.setting, row.side, row.index))
    return [answers[row] for row in order]


def _batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _answered(
    context: AttackContext,
    batch: list[Row],
    ids: dict[Side, list[list[int]]],
    plans: RowPlans,
    prefix: SharedPrefix,
    settled: Callable[[str], bool] | None,
) -> Iterator[tuple[list[Row], list[Reply]]]:
    """Answer a batch, in halves where the device's memory does not hold it whole."""
    try:
        replies = answer_batch(
            context.loaded,
            [ids[row.side][row.index] for row in batch],
            context.request.max_new_tokens,
            settled=settled,
            plans=plans,
            plan_of=[row.setting for row in batch],
            prefix=prefix,
        )
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        replies = None
    if replies is not None:
        yield batch, replies
        return
    # Outside of the except block, where the failed batch's tensors would still be held.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from _answered(context, half, ids, plans, prefix, settled)


def _skipped(planned: list[Planned], row: Row, why: str) -> Answer:
    setting = planned[row.setting].setting
    return Answer(
        setting=setting.name,
        seed=setting.seed,
        side=row.side,
        index=row.index,
        verdict="skipped",
        why=why,
    )


def _answer(planned: list[Planned], row: Row, reply: Reply, judged: Judged, keep: bool) -> Answer:
    setting, harm = planned[row.setting].setting, judged.harm
    told = None
    if harm is not None:
        told = HarmTold(verdict=HARM[harm.harmful], score=harm.score, why=harm.why, cut=harm.cut)
    return Answer(
        setting=setting.name,
        seed=setting.seed,
        side=row.side,
        index=row.index,
        verdict=judged.judgement.verdict,
        why=judged.judgement.why,
        harm=told,
        tokens=reply.tokens,
        response=reply.text if keep else None,
    )


def _write_judged(folder: Path, answers: dict[Row, Answer]) -> None:
    """Append one line for one batch, on the disk before the next is run."""
    line = [
        [row.setting, row.side, row.index, row.tokens, answer.model_dump(mode="json")]
        for row, answer in answers.items()
    ]
    append_line(folder / JUDGED, line)


def _read_judged(folder: Path, rows: list[Row]) -> dict[Row, Answer]:
    """What an earlier call wrote down."""
    known = set(rows)
    return {
        row: Answer.model_validate(answer)
        for entries in read_lines(folder / JUDGED)
        for *place, answer in entries
        if (row := Row(*place)) in known
    }
