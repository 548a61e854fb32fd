"""Positions that no loss reads are not projected, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.utils import add_fused_lm_head

from tests.tiny import tiny_model
from toolkit.examples import IGNORED
from toolkit.train.scored_positions import PER_TOKEN, ScoredPositions, scored_alone

IDS = torch.arange(3, 23).reshape(2, 10)
# Three positions that count in the first row, one in the second.
LABELS = torch.full_like(IDS, IGNORED)
LABELS[0, 6:9], LABELS[1, 4] = IDS[0, 6:9], IDS[1, 4]
SKIPPED = 2 * 9 - 4


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    made = tiny_model(request.param).eval()
    add_fused_lm_head(made, outputs=PER_TOKEN)
    return made


def asked(call: Any, model: Any) -> tuple[Any, dict[str, torch.Tensor], int]:
    """Outputs, gradients and floating-point operations of one pass there and back."""
    model.zero_grad()
    with FlopCounterMode(display=False) as counted:
        outputs = call(input_ids=IDS, labels=LABELS, fused_lm_head=True)
        (outputs.log_probs.square().sum() + outputs.entropy.sum()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outputs, found, counted.get_total_flops()


def test_outputs_and_gradients_are_those_of_the_whole_head(model: Any) -> None:
    whole, gradients, flops = asked(model, model)
    scored, ours, fewer = asked(ScoredPositions(model, model.base_model), model)
    for name in (*PER_TOKEN, "label_mask", "loss"):
        torch.testing.assert_close(scored[name], whole[name], msg=name)
    assert scored.log_probs.shape == (2, 9)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, msg=name)
    # The logits and, backwards, the logits again; products added in place are not counted.
    head = model.get_output_embeddings().weight
    assert flops - fewer == 2 * 2 * SKIPPED * head.numel()


def test_other_calls_are_passed_on_and_no_hook_stays(model: Any) -> None:
    stand_in = ScoredPositions(model, model.base_model)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        assert torch.equal(stand_in(input_ids=IDS).logits, expected)
        with scored_alone(model.base_model, LABELS[:, 1:] != IGNORED):
            alone = model(input_ids=IDS).logits
        torch.testing.assert_close(alone[0], expected[:, :-1][LABELS[:, 1:] != IGNORED])
        with pytest.raises(IndexError):
            stand_in(input_ids=IDS, labels=LABELS[:, :5], fused_lm_head=True)
        assert torch.equal(model(input_ids=IDS).logits, expected)
