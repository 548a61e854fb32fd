"""What an alignment will take: sizes against the model itself, time against earlier runs."""

import json
from pathlib import Path

import pytest

from analysis.align_requests import AlignRequest
from analysis.estimate import estimate, model_size, nominal_pace, operations, pairs_of
from tests.tiny import FAMILIES, save_tiny, tiny_model
from toolkit.errors import SafeNeuronError


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_the_models_own(family: str, tmp_path: Path) -> None:
    size = model_size(save_tiny(tmp_path / "model", family))
    model = tiny_model(family)
    named = dict(model.named_parameters())
    assert size.numbers == sum(p.numel() for p in named.values())
    inside = [name for name in named if any(part.isdigit() for part in name.split("."))]
    assert size.blocks == sum(named[name].numel() for name in inside)
    assert (size.layers, size.hidden, size.vocabulary) == (3, 32, 600)


def asked(folder: Path, **fields: object) -> AlignRequest:
    return AlignRequest.model_validate({"model": str(folder), **fields})


def test_memory_is_weights_gradients_state_and_activations(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    size = model_size(folder)
    plain = estimate(asked(folder))
    assert plain.weights == 4 * size.numbers
    assert plain.state == 12 * size.blocks  # a gradient and AdamW's two moments
    assert estimate(asked(folder, optimiser="sgd")).state == 4 * size.blocks
    assert estimate(asked(folder, lora_rank=2)).state < plain.state
    halved = estimate(asked(folder, micro_batch=4))
    assert halved.activations == plain.activations // 2
    assert plain.memory == plain.weights + plain.state + plain.activations


def test_time_goes_by_the_pace_of_earlier_runs(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    request = asked(folder, steps=10, total=40)
    slow, fast = nominal_pace()
    unknown = estimate(request)
    assert unknown.by_earlier == 0
    assert unknown.seconds[1] / unknown.seconds[0] == pytest.approx(fast / slow)
    earlier = save_tiny(tmp_path / "earlier")
    card = {"request": request.model_dump(mode="json"), "pairs": {"trained": 40}}
    card["figures"] = {"steps": 10, "seconds": 25.0}
    (earlier / "safeneuron.json").write_text(json.dumps(card), "utf-8")
    (tmp_path / "broken").mkdir()
    known = estimate(request, [tmp_path / "none", tmp_path / "broken", earlier])
    assert known.by_earlier == 1
    # The same work takes as long as it took; with more steps, as much longer.
    assert known.seconds == pytest.approx((25.0, 25.0))
    size = model_size(folder)
    longer = asked(folder, steps=30, total=40)
    ratio = operations(longer.settings(40), size, 124, 40) / operations(
        request.settings(40), size, 124, 40
    )
    assert estimate(longer, [earlier]).seconds[0] == pytest.approx(25.0 * ratio)
    card["figures"]["steps"] = 4  # stopped early: its seconds are of a part of it
    (earlier / "safeneuron.json").write_text(json.dumps(card), "utf-8")
    assert estimate(request, [earlier]).by_earlier == 0


def test_steps_of_passes_are_counted_where_the_pairs_are_known(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    made = asked(folder, preset="paper", harmful="advbench[:100]", harmless="harmless-train[:60]")
    assert pairs_of(made) == 160
    assert estimate(made).steps == 3 * 160 // 8
    read = asked(folder, preset="paper", pairs=tmp_path / "pairs.jsonl")
    with pytest.raises(SafeNeuronError, match="counted when they are read"):
        estimate(read)
    assert estimate(asked(folder, preset="paper", pairs=tmp_path / "p.jsonl", total=16)).steps == 6


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(SafeNeuronError, match="not on this machine yet"):
        estimate(AlignRequest(model="owner/name"))
    folder = save_tiny(tmp_path / "model")
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"\xff" * 64)
    with pytest.raises(SafeNeuronError, match="not read as a model"):
        estimate(asked(folder))
