"""Recipes: how a model is aligned, as frozen configurations.

===============  ======================================  ==========================
                 paper (Sec. 3.3, Appendix B)            two-core preset (default)
===============  ======================================  ==========================
objective        DPO (Eq. 12)                            DPO + 0.2 SFT on chosen
beta             0.1                                     0.1
learning rate    5e-6, cosine                            4e-5, cosine
weight decay     0.05                                    0.05
length           3 epochs over some thousand pairs       72 steps of 8 pairs
===============  ======================================  ==========================

``dpo`` trains all block weights (the paper's RLHF-Safety). ``safeneuron`` holds the mask's
neurons where they are, and with ``zero`` also removes them from the policy's forward pass
while it trains, which is what Algorithm 1 (step 3) writes; the prose of Sec. 3.3 freezes
only. The default is Algorithm 1's reading: in our trials it is the one that made the
trained model stand an attack. The reference model is the start model, whole.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """A recipe with its numbers; all of it is recorded with the result.

    Args:
        recipe: ``dpo`` or ``safeneuron``.
        zero: zero the frozen neurons in the policy's forward pass while training.
        steps: optimiser steps.
        batch_size: pairs a step.
        learning_rate: at its peak; cosine decay to zero.
        weight_decay: of AdamW, on every weight that trains.
        beta: of DPO.
        sft_weight: of the supervised loss on the chosen side, beside DPO's 1.
        max_length: tokens of a prompt and one answer.
        save_every: steps between checkpoints.
        seed: of data order and everything random.
        dtype: of the arithmetic; weights and optimiser stay in float32.
        optimiser: as transformers' TrainingArguments names it.
    """

    recipe: Literal["dpo", "safeneuron"]
    zero: bool
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    beta: float
    sft_weight: float
    max_length: int
    save_every: int
    seed: int
    dtype: Literal["float32", "bfloat16"]
    optimiser: str = "adamw_torch"
