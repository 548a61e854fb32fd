"""The causal test of a mask (Chen et al. 2406.14144): how much of refusal it carries across."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis.statistics import Proportion, wilson
from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import judge_refusal
from toolkit.neurons import NeuronSet
from toolkit.progress import Progress, silent

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel

Refused = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CausalEffect:
    """What patching does to refusals.

    Args:
        base: refused by the model before alignment.
        aligned: by the model after it.
        patched: by the base with the neurons' activations from the aligned model.
        random: the same with a random set of the same size in each layer.
        effect: the share of alignment's gain that the neurons carry,
            ``(patched - base) / (aligned - base)`` (Chen et al.); 1 is all of it.
        random_effect: the same of the random set.
        low: lower end of the bootstrap 95 % interval of ``effect`` over prompts; NaN where
            too many draws have no gain to share.
        high: its upper end.
    """

    base: Proportion
    aligned: Proportion
    patched: Proportion
    random: Proportion
    effect: float
    random_effect: float
    low: float
    high: float


def causal_effect(
    base: "LoadedModel",
    aligned: "LoadedModel",
    neurons: NeuronSet,
    texts: list[str],
    max_new_tokens: int = 48,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = silent,
) -> CausalEffect:
    """Patch the base with the aligned model's neurons as it answers, and count refusals.

    Chen et al. read a cost model; here an answer counts 1 where the refusal judge calls it
    refused.

    Args:
        base: before alignment.
        aligned: after it, of the same shape.
        neurons: which are put in.
        texts: harmful prompts.
        max_new_tokens: an answer's greatest length, in tokens.
        batch_size: prompts at a time.
        seed: of the random set.
        progress: hears of the work.

    Raises:
        SafeNeuronError: the models are not of one shape, or refuse equally often.
    """
    from toolkit.generate import generate
    from toolkit.patching import patched_answers

    done, total = 0, 4 * len(texts)

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress("answer", done, total)

    def patched(chosen: NeuronSet) -> list[str]:
        return patched_answers(base, aligned, chosen, texts, max_new_tokens, batch_size, count)

    progress("answer", 0, total)
    before = _refused(generate(base, texts, max_new_tokens, batch_size, count))
    after = _refused(generate(aligned, texts, max_new_tokens, batch_size, count))
    if before.sum() == after.sum():
        raise SafeNeuronError(
            f"{base.folder.source} and {aligned.folder.source} refuse equally often "
            f"({before.sum()} of {len(texts)}), so there is no gain to explain; give the "
            "model from before alignment and the one after"
        )
    own, other = _refused(patched(neurons)), _refused(patched(neurons.random_like(seed)))
    gain = int(after.sum()) - int(before.sum())
    low, high = _interval(before, after, own, seed)
    return CausalEffect(
        base=_share(before),
        aligned=_share(after),
        patched=_share(own),
        random=_share(other),
        effect=(int(own.sum()) - int(before.sum())) / gain,
        random_effect=(int(other.sum()) - int(before.sum())) / gain,
        low=low,
        high=high,
    )


def _refused(answers: list[str]) -> Refused:
    return np.array([judge_refusal(answer).verdict == "refused" for answer in answers])


def _share(refused: Refused) -> Proportion:
    return wilson(int(refused.sum()), len(refused))


def _interval(
    before: Refused, after: Refused, patched: Refused, seed: int, resamples: int = 2_000
) -> tuple[float, float]:
    """Percentile bootstrap over prompts; draws without a gain have no share of it."""
    count = len(before)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    base, aligned, own = (
        part.astype(float)[drawn].sum(axis=1) for part in (before, after, patched)
    )
    gained = aligned != base
    if gained.mean() < 0.99:
        return float("nan"), float("nan")
    shares = (own - base)[gained] / (aligned - base)[gained]
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)
