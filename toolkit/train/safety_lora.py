"""A LoRA that learns to refuse harmful prompts and to say everything else as before.

The loss is the sum of two, each over whole answers rather than their average token, so that
the first word, which settles whether an answer refuses, weighs as much as it decides:

- on harmful prompts, the surprise at a refusal, ``-log p(refusal | prompt)``;
- on harmless prompts, the divergence from the model before, along its own answers,
  ``sum_t KL(before(. | prompt, answer_<t) || now(. | prompt, answer_<t))``.

The second bounds what the adapter may change: a refusal of a harmless prompt costs the
logarithm of what the model before gave to its first word, and the perplexity of its own
answers rises by the exponential of the mean divergence of a token.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from toolkit.errors import SafeNeuronError
from toolkit.examples import IGNORED, Example, encode
from toolkit.models.load import LoadedModel


@dataclass(frozen=True)
class SafetyLoraSettings:
    """How the adapter is trained; every field is recorded beside it.

    Args:
        targets: names of the linear modules that are adapted, in every layer.
        refusals: harmful prompts of a step.
        answers: harmless prompts of a step.
        rows: of these that are held at once, those of like length together.
        refusal_tokens: how much of a refusal is learnt: its head.
        answer_tokens: how much of an answer the divergence is taken along: its head.
        divergence_weight: of the second loss against the first.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    steps: int = 220
    refusals: int = 8
    answers: int = 16
    rows: int = 6
    refusal_tokens: int = 10
    answer_tokens: int = 8
    divergence_weight: float = 2.0
    learning_rate: float = 2.5e-3
    warmup_steps: int = 8
    max_grad_norm: float = 5.0
    seed: int = 0


def row_losses(
    logits: Tensor, before: Tensor, labels: Tensor, refused: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row's loss: surprise at its refusal, or divergence along its answer.

    Args:
        logits: of the model in training, ``[rows, tokens, vocabulary]``; those at ``t`` are of
            the label at ``t``.
        before: of the model before, for the rows that are not refused, of the same form.
        labels: ``[rows, tokens]``; :data:`toolkit.examples.IGNORED` where nothing is learnt.
        refused: ``[rows]``, whether a row is a refusal.

    Returns:
        The surprise of the rows that are refused and the divergence of the others, in nats,
        summed over tokens.
    """
    logits = logits.float()
    surprise = cross_entropy(
        logits[refused].transpose(1, 2), labels[refused], ignore_index=IGNORED, reduction="none"
    ).sum(dim=-1)
    known, now = before.float().log_softmax(dim=-1), logits[~refused].log_softmax(dim=-1)
    divergence = (known.exp() * (known - now)).sum(dim=-1)
    return surprise, (divergence * (labels[~refused] != IGNORED)).sum(dim=-1)


def _endless(examples: Sequence[Example], generator: random.Random) -> Iterator[Example]:
    """All examples in a new order each time around."""
    while True:
        yield from generator.sample(list(examples), len(examples))


def _batches(
    tokenizer: Any,
    refusals: Sequence[Example],
    answers: Sequence[Example],
    settings: SafetyLoraSettings,
) -> list[dict[str, Any]]:
    """The rows of all steps in order, each step's from the shortest to the longest."""
    generator = random.Random(settings.seed)
    kinds = (
        (_endless(refusals, generator), settings.refusals, settings.refusal_tokens, True),
        (_endless(answers, generator), settings.answers, settings.answer_tokens, False),
    )
    rows: list[dict[str, Any]] = []
    for _ in range(settings.steps):
        step = [
            {**encode(tokenizer, next(examples), tokens), "refused": refused}
            for examples, count, tokens, refused in kinds
            for _ in range(count)
        ]
        rows += sorted(step, key=lambda row: len(row["input_ids"]))
    return rows


def split_prefix(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Take from the rows, in place, the tokens of the template that all of them begin with.

    Args:
        rows: ``input_ids`` and ``labels`` of each, lists of one length.

    Returns:
        The tokens taken: of every prompt at least the last remains, since its logits are
        those of the answer's first token.
    """
    before = (sum(label == IGNORED for label in row["labels"]) - 1 for row in rows)
    columns = zip(*(row["input_ids"] for row in rows), strict=False)
    alike = takewhile(lambda column: len(set(column)) == 1, columns)
    shared = [column[0] for column in islice(alike, max(0, min(before)))]
    for row in rows:
        for name in ("input_ids", "labels"):
            row[name] = row[name][len(shared) :]
    return shared


def answer_logits(model: Any, prefix: Tensor, rows: dict[str, Tensor], told: int) -> Tensor:
    """Logits of the last ``told`` labels of each row, the prefix run once for all of them.

    Rows are padded on the left, between the prefix and their own tokens; positions pass
    over the padding. Gradients flow through the prefix too.

    Args:
        model: a causal language model of ``transformers``.
        prefix: ``[1, tokens]``, may be empty.
        rows: ``input_ids`` and ``attention_mask``, ``[rows, tokens]``.
        told: how many.

    Returns:
        ``[rows, told, vocabulary]``.
    """
    kept, past = rows["attention_mask"], None
    # By number: with a slice, autograd would have the head's weights copied for every row.
    asked = torch.arange(-told - 1, -1, device=kept.device)
    if prefix.numel():
        past = model(prefix, use_cache=True, logits_to_keep=asked[-1:]).past_key_values
        past.batch_repeat_interleave(len(kept))
    logits: Tensor = model(
        rows["input_ids"],
        attention_mask=torch.cat([kept.new_ones(len(kept), len(prefix[0])), kept], dim=1),
        position_ids=len(prefix[0]) + (kept.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=past,
        use_cache=past is not None,
        logits_to_keep=asked,
    ).logits
    return logits


def train_safety_lora(
    loaded: LoadedModel,
    refusals: Sequence[Example],
    answers: Sequence[Example],
    settings: SafetyLoraSettings,
    adapter: Path,
    on_step: Callable[[int, int, float], None] | None = None,
    start: Path | None = None,
) -> None:
    """Train the adapter and write it to a folder, in bfloat16.

    The model is left wrapped by PEFT: load a fresh one to go on.

    Args:
        loaded: the model to adapt.
        refusals: harmful prompts and what is to be said to them.
        answers: harmless prompts and the model's own answers.
        settings: how.
        adapter: the folder to write ``adapter_config.json`` and
            ``adapter_model.safetensors`` to.
        on_step: hears of each optimiser step: its number, of how many, and the loss.
        start: an adapter of the same shape to go on from.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import Dataset
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    tokenizer: Any = loaded.tokenizer
    parts, left_over = divmod(settings.refusals + settings.answers, settings.rows)
    if left_over:
        raise SafeNeuronError("the rows of a step are not a whole number of parts")

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if on_step is not None and logs and "loss" in logs:
                on_step(state.global_step, state.max_steps, float(logs["loss"]))

    class SafetyTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            labels, refused = inputs.pop("labels"), inputs.pop("refused")
            # Rows are padded on the left, so that all answers end at the last token.
            told = int((labels != IGNORED).sum(dim=1).max())
            answered = {name: value[~refused] for name, value in inputs.items()}
            logits = answer_logits(model, prefix, inputs, told)
            before = logits[:0]
            if not refused.all():
                with torch.no_grad(), model.disable_adapter():
                    before = answer_logits(model, prefix, answered, told)
            surprise, divergence = row_losses(logits, before, labels[:, -told:], refused)
            divergence = settings.divergence_weight * divergence
            # The trainer takes the mean over a step's parts; the loss is the sum of theirs.
            return parts * (
                surprise.sum() / settings.refusals + divergence.sum() / settings.answers
            )

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [{"input_ids": row["input_ids"]} for row in rows]
        batch = dict(tokenizer.pad(ids, padding_side="left", return_tensors="pt"))
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for place, row in enumerate(rows):
            labels[place, -len(row["labels"]) :] = torch.tensor(row["labels"])
        refused = torch.tensor([row["refused"] for row in rows])
        return {**batch, "labels": labels, "refused": refused}

    rows = _batches(tokenizer, refusals, answers, settings)
    prefix = torch.tensor([split_prefix(rows)], device=loaded.device)
    torch.manual_seed(settings.seed)
    model: Any
    if start is None:
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=list(settings.targets),
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(loaded.model, lora)
    else:
        model = PeftModel.from_pretrained(loaded.model, str(start), is_trainable=True)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=settings.rows,
            gradient_accumulation_steps=parts,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup_steps,
            max_grad_norm=settings.max_grad_norm,
            weight_decay=0.0,
            bf16=True,
            use_cpu=loaded.device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=settings.seed,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            # The steps are drawn above, refusals and answers in each.
            train_sampling_strategy="sequential",
        )
        trainer = SafetyTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            data_collator=collate,
            callbacks=[Steps()],
        )
        # Else it would leave a step's parts summed.
        trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    # Half the bytes; the merge is done from these rounded numbers, so what ships is what runs.
    model.to(torch.bfloat16).save_pretrained(str(adapter))
