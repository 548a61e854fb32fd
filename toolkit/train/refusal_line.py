"""Where an adapter draws the line between refusing and answering, set in closed form.

An adapter that changes little ranks harmful prompts above harmless ones less well than the same
adapter made stronger, which refuses more of both. So it is made stronger, its update times a
factor, and then the line is moved back, on every prompt by the same amount and on nothing else:
one more rank on the last layer's down projection, ``delta a^T``, where

- ``a`` reads 1 off the MLP's activations where an answer begins and 0 along answers, by ridge
  regression;
- ``delta`` takes the wanted nats off the logit of the word that refusals begin with and, of all
  residual vectors that do, changes the other words' logits least, weighed by how likely each is.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.errors import SafeNeuronError
from toolkit.examples import IGNORED, Example, encode
from toolkit.files import write_atomically
from toolkit.models.load import LoadedModel

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class LineSettings:
    """Where the line is drawn; every field is recorded beside the adapter.

    Args:
        strength: what the adapter's update is multiplied by.
        refused: share of the harmless prompts that stay beyond the line.
        refusals: harmful prompts that ``a`` is fitted on.
        answers: harmless prompts that it is fitted on, and the line is drawn by.
        answer_tokens: of each answer, where ``a`` is to read 0.
        batch_size: prompts at a time.
        weight: of the place where an answer begins against a place along it.
        ridge: of both regressions, against the mean square of what they regress on.
    """

    strength: float = 1.2
    refused: float = 0.02
    refusals: int = 96
    answers: int = 480
    answer_tokens: int = 16
    batch_size: int = 24
    weight: float = 9.0
    ridge: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Openings:
    """What a model's last layer does where answers begin, and along them.

    Args:
        begins: inputs of the last down projection where an answer begins, ``[prompts, neurons]``.
        along: the same at the answers' tokens, ``[tokens, neurons]``.
        scale: root mean square of the residual stream where an answer begins; the mean.
        logits: of the first token after the harmless prompts, ``[prompts, vocabulary]``.
    """

    begins: Tensor
    along: Tensor
    scale: float
    logits: Tensor


def refusal_margin(logits: Tensor, refusal: int) -> tuple[Tensor, Tensor]:
    """By how much a refusal's first token leads the most likely other one.

    Args:
        logits: of an answer's first token, ``[rows, vocabulary]``.
        refusal: the token that refusals begin with.

    Returns:
        The lead in nats, ``[rows]``: greedy decoding refuses where it is above 0; and the
        probabilities of the other tokens among themselves, ``[rows, vocabulary]``.
    """
    others = logits.clone()
    others[:, refusal] = -torch.inf
    return logits[:, refusal] - others.max(dim=1).values, others.softmax(dim=1)


def beginning_direction(begins: Tensor, along: Tensor, weight: float, ridge: float) -> Tensor:
    """The vector ``a`` whose product is nearest 1 where answers begin and 0 along them.

    Minimises ``weight * sum (a.x - 1)^2 + sum (a.y)^2 + ridge * mean square * |a|^2``.

    Args:
        begins: ``[prompts, neurons]``, the ``x``.
        along: ``[tokens, neurons]``, the ``y``.
        weight: of the first sum.
        ridge: against the mean diagonal entry of the normal equations.
    """
    square = weight * begins.T @ begins + along.T @ along
    square += ridge * square.diagonal().mean() * torch.eye(len(square))
    found: Tensor = torch.linalg.solve(square, weight * begins.sum(dim=0))
    return found


def quietest_shift(head: Tensor, likely: Tensor, token: int, nats: float, ridge: float) -> Tensor:
    """The residual vector that lowers one token's logit and disturbs the others least.

    Minimises the variance, under ``likely``, of what the other logits change by, with
    ``(head[token] - mean) . delta = -nats``; Lagrange's condition gives it in one solve.

    Args:
        head: what the logits read off the normed residual stream, ``[vocabulary, width]``.
        likely: probabilities of the other tokens, ``[vocabulary]``, 0 at ``token``.
        token: whose logit is lowered.
        nats: by how much, against the others' mean.
        ridge: against the mean diagonal entry of the covariance.
    """
    centred = head - likely @ head
    spread = centred.T @ (likely[:, None] * centred)
    spread += ridge * spread.diagonal().mean() * torch.eye(len(spread))
    towards: Tensor = torch.linalg.solve(spread, centred[token])
    return -nats * towards / (centred[token] @ towards)


def strengthen(adapter: Path, factor: float) -> None:
    """Multiply an adapter's update, in its folder, by a factor."""
    weights = load_file(adapter / WEIGHTS)
    for name, value in weights.items():
        if ".lora_B." in name:
            weights[name] = (value.float() * factor).to(value.dtype)
    save_file(weights, adapter / WEIGHTS)


def add_rank(adapter: Path, module: str, column: Tensor, row: Tensor) -> None:
    """Add ``column row^T`` to what an adapter adds to a module: one more rank there alone.

    Args:
        adapter: its folder.
        module: name of a linear module, from the whole model.
        column: ``[outputs]``.
        row: ``[inputs]``.

    Raises:
        SafeNeuronError: if the adapter does not touch the module.
    """
    weights = load_file(adapter / WEIGHTS)
    into, out = (f"base_model.model.{module}.lora_{part}.weight" for part in "AB")
    if into not in weights:
        raise SafeNeuronError(f"the adapter in {adapter} does not touch {module}")
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    rank = len(weights[into])
    alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
    # Both factors of one length, so that neither is lost to half precision.
    length = (row.norm() * column.norm() * rank / alpha).sqrt()
    parts = {into: (row / row.norm())[None], out: (column / column.norm())[:, None]}
    for dim, (name, part) in enumerate(parts.items()):
        old = weights[name]
        weights[name] = torch.cat([old, (length * part).to(old.dtype)], dim=dim).contiguous()
    config["rank_pattern"][module] = rank + 1
    config["alpha_pattern"][module] = alpha * (rank + 1) / rank
    save_file(weights, adapter / WEIGHTS)
    write_atomically(path, json.dumps(config, indent=1) + "\n")


@torch.no_grad()
def look_at_openings(
    loaded: LoadedModel,
    refusals: Sequence[Example],
    answers: Sequence[Example],
    settings: LineSettings,
) -> Openings:
    """Run the model over prompts and their answers, and keep what the last layer did.

    Args:
        loaded: a model of Llama's form: its last norm is ``norm`` of the body.
        refusals: harmful prompts and what is said to them.
        answers: harmless prompts and the model's own answers.
        settings: how long the answers are, and how many go at a time.
    """
    body, head = loaded.body, loaded.model.get_output_embeddings()
    seen: dict[str, Tensor] = {}
    down = loaded.layout.down(loaded.model, len(loaded.layout.sites) - 1)
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0])
        )
        for name, module in (("neurons", down), ("residual", body.norm))
    ]
    begins, along, scales, logits = [], [], [], []
    kinds = [(example, True) for example in refusals] + [(example, False) for example in answers]
    kinds.sort(key=lambda kind: len(kind[0].prompt))
    try:
        for start in range(0, len(kinds), settings.batch_size):
            part = kinds[start : start + settings.batch_size]
            rows = [encode(loaded.tokenizer, each, settings.answer_tokens) for each, _ in part]
            ids = [{"input_ids": row["input_ids"]} for row in rows]
            batch = loaded.tokenizer.pad(ids, padding_side="right", return_tensors="pt")
            normed = body(**batch.to(loaded.device)).last_hidden_state
            for place, (row, (_, harmful)) in enumerate(zip(rows, part, strict=True)):
                first = sum(label == IGNORED for label in row["labels"]) - 1
                end = len(row["labels"])
                begins.append(seen["neurons"][place, first].float().cpu())
                along.append(seen["neurons"][place, first + 1 : end].float().cpu())
                scales.append(seen["residual"][place, first].float().square().mean().sqrt())
                if not harmful:
                    logits.append(head(normed[place, first]).float().cpu())
    finally:
        for handle in handles:
            handle.remove()
    scale = float(torch.stack(scales).mean())
    return Openings(torch.stack(begins), torch.cat(along), scale, torch.stack(logits))


def draw_line(
    loaded: LoadedModel,
    refusals: Sequence[Example],
    answers: Sequence[Example],
    refusal: int,
    settings: LineSettings,
    adapter: Path,
) -> float:
    """Move an adapter's line so that few harmless prompts are left beyond it.

    Args:
        loaded: the base model with the adapter merged, of Llama's form.
        refusals: harmful prompts and what is said to them.
        answers: harmless prompts and the model's own answers.
        refusal: the token that refusals begin with.
        settings: how few, and how it is found; the adapter is strengthened before.
        adapter: its folder, changed in place.

    Returns:
        Nats that were taken off the lead of a refusal's first token; 0, and nothing changed,
        where no more prompts than that are beyond the line already.
    """
    draw = random.Random(settings.seed)
    some = (
        draw.sample(list(refusals), min(settings.refusals, len(refusals))),
        draw.sample(list(answers), min(settings.answers, len(answers))),
    )
    seen = look_at_openings(loaded, *some, settings)
    margin, others = refusal_margin(seen.logits, refusal)
    nats = float(margin.quantile(1 - settings.refused))
    if nats <= 0:
        return 0.0
    row = beginning_direction(seen.begins, seen.along, settings.weight, settings.ridge)
    unembedding = loaded.model.get_output_embeddings().weight.float()
    head = (unembedding * loaded.body.norm.weight.float()).detach().cpu()
    # A ridge of its own: what is likely spans few of the residual stream's directions.
    shift = quietest_shift(head, others.mean(dim=0), refusal, nats, 20 * settings.ridge)
    module = loaded.layout.sites[-1].down
    add_rank(adapter, module, shift * seen.scale, row)
    return nats
