"""Trouble in training: no memory, no numbers, masks of all or nothing; one clear line each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from analysis.align_requests import AlignRequest
from analysis.alignment import align
from tests.analysis.test_alignment import assert_same, request_, run
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile
from toolkit.train import dpo
from toolkit.train.dpo import newest_checkpoint

__all__ = ["request_"]  # a fixture


def refused(request: AlignRequest, folder: Path, message: str) -> None:
    with pytest.raises(SafeNeuronError, match=message) as caught:
        run(request, folder)
    assert "\n" not in str(caught.value)


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the device refuse more rows at once, from the n-th pass of training on."""

    def limit(rows: int, after: int = 0) -> None:
        passes = 0
        usual = dpo._Run._trainer

        def hooked(self: Any, *given: Any) -> Any:
            trainer = usual(self, *given)

            def refuse(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
                nonlocal passes
                if module.training:
                    passes += 1
                    if passes > after and len(named["input_ids"]) > rows:
                        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

            self.loaded.model.register_forward_pre_hook(refuse, with_kwargs=True)
            return trainer

        monkeypatch.setattr(dpo._Run, "_trainer", hooked)

    return limit


def test_without_memory_the_parts_are_halved_and_the_batch_stays(
    request_: AlignRequest, tmp_path: Path, scarce: Callable[..., None]
) -> None:
    small = request_.model_copy(update={"micro_batch": 2, "dtype": "float32"})
    run(small, tmp_path / "asked")
    scarce(rows=4)  # two pairs
    heard: list[dict[str, Any]] = []
    tight = small.model_copy(update={"micro_batch": None})
    outcome = align(tight, tmp_path / "halved", heard.append, lambda: False)
    assert [event for event in heard if event["kind"] == "memory"] == [
        {"kind": "memory", "micro_batch": 2}
    ]
    assert outcome.summary["micro_batch"] == 2
    # From the start weights and in the same order: what was asked for by name is the same.
    assert_same(tmp_path / "asked", tmp_path / "halved")


def test_without_memory_late_it_goes_on_from_the_checkpoint(
    request_: AlignRequest, tmp_path: Path, scarce: Callable[..., None]
) -> None:
    scarce(rows=4, after=5)
    steps = [event["step"] for event in run(request_, tmp_path / "late")]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8]


def test_without_memory_for_one_pair(
    request_: AlignRequest, tmp_path: Path, scarce: Callable[..., None]
) -> None:
    scarce(rows=1)
    refused(request_, tmp_path / "none", "out of memory with 1 pairs.*--max-length")


def test_other_errors_are_not_taken_for_it(
    request_: AlignRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, *given: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(dpo._Run, "_trainer", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(request_, tmp_path / "broken")


def test_the_last_good_checkpoint_is_kept(
    request_: AlignRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.train.trainers import RecipeDPO

    usual = RecipeDPO.compute_loss

    def breaks(self: Any, *given: Any, **named: Any) -> Any:
        loss = usual(self, *given, **named)
        return loss * float("nan") if self.state.global_step == 4 else loss

    folder = tmp_path / "nan"
    with monkeypatch.context() as patched:
        patched.setattr(RecipeDPO, "compute_loss", breaks)
        refused(request_, folder, "not a number at step 5; lower --learning-rate .*step 2, is kept")
    # Step 4's checkpoint has the weights that gave no number; step 2's are sound.
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.name == "checkpoint-2"
    assert next(event["step"] for event in run(request_, folder)) == 3


def test_a_learning_rate_that_makes_nan(request_: AlignRequest, tmp_path: Path) -> None:
    folder = tmp_path / "wild"
    wild = request_.model_copy(update={"learning_rate": 1e30, "save_every": 1})
    refused(wild, folder, r"not a number at step 2; lower --learning-rate \(none was saved\)")
    assert newest_checkpoint(folder) is None
    # The last step breaks it, and no loss comes after to say so.
    once = wild.model_copy(update={"steps": 1, "learning_rate": 1e38, "optimiser": "sgd"})
    huge = once.model_copy(update={"weight_decay": 1e30, "max_grad_norm": 0.0})
    refused(huge, tmp_path / "last", "not a number at step 2")
    assert not (tmp_path / "last" / "config.json").exists()


@pytest.mark.parametrize("recipe", ["safeneuron", "random-freeze", "adaptive", "sn-tune"])
def test_masks_of_everything_and_of_nothing(
    recipe: str, request_: AlignRequest, tmp_path: Path
) -> None:
    mask = MaskFile.model_validate_json((tmp_path / "mask.json").read_text("utf-8"))
    widths = mask.model.neurons_per_layer
    every = {str(layer): list(range(width)) for layer, width in enumerate(widths)}
    mask.model_copy(update={"neurons": {}, "count": 0, "fraction": 0.0}).write(
        tmp_path / "nothing.json"
    )
    mask.model_copy(update={"neurons": every, "count": sum(widths), "fraction": 1.0}).write(
        tmp_path / "all.json"
    )
    trains = recipe == "sn-tune"
    for name, message in (
        ("nothing", "nothing would train" if trains else "nothing would be frozen"),
        ("all", "nothing would be left out" if trains else "no MLP would train"),
    ):
        update = {"recipe": recipe, "mask": tmp_path / f"{name}.json"}
        refused(request_.model_copy(update=update), tmp_path / "never", message)
        assert not (tmp_path / "never").exists()


def test_rsn_tune_with_nothing_left(request_: AlignRequest, tmp_path: Path) -> None:
    update = {"recipe": "rsn-tune", "foundation": tmp_path / "mask.json"}
    refused(request_.model_copy(update=update), tmp_path / "never", "nothing would train")


def test_sn_tune_trains_the_mask_alone(request_: AlignRequest, tmp_path: Path) -> None:
    from tests.analysis.test_alignment import weights
    from toolkit.models.load import load_model

    folder = tmp_path / "tuned"
    outcome = align(
        request_.model_copy(update={"recipe": "sn-tune"}), folder, lambda e: None, lambda: False
    )
    start, after = load_model(request_.model), weights(folder)
    assert outcome.summary["trained_numbers"] == 4 * (3 * 32 + 2)
    for name, before in start.model.state_dict().items():
        moved = (after[name] != before).nonzero()
        if ".mlp." not in name or ".1." in name or name.endswith("down_proj.bias"):
            assert not len(moved), name
        else:
            along = 1 if "down_proj" in name else 0
            allowed = {1, 2} if ".0." in name else {5, 63}
            assert set(moved[:, along].tolist()) == allowed, name


def test_random_freeze_holds_others_of_the_same_number(
    request_: AlignRequest, tmp_path: Path
) -> None:
    folder = tmp_path / "random"
    run(request_.model_copy(update={"recipe": "random-freeze", "seed": 3}), folder)
    asked = MaskFile.model_validate_json((tmp_path / "mask.json").read_text("utf-8"))
    held = MaskFile.model_validate_json((folder / "mask.json").read_text("utf-8"))
    assert held.neuron_set() == asked.neuron_set().random_like(3)
    assert held.method.parameters == {"mask": asked.sha256, "seed": 3}
