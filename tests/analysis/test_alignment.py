"""Align end to end on a tiny model: exact, resumable after SIGKILL, cancellable."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.align_requests import AlignRequest
from analysis.alignment import align, standing
from analysis.requests import parse_request
from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, PromptsInfo, read_mask
from toolkit.models.layout import neuron_slices
from toolkit.models.load import load_model
from toolkit.models.sources import resolve
from toolkit.neurons import NeuronSet

STEPS = 8


@pytest.fixture
def request_(tiny_llama: Path, tmp_path: Path) -> AlignRequest:
    loaded = load_model(str(tiny_llama))
    side = PromptsInfo(name="p", sha256="0" * 64, count=2)
    mask = MaskFile.of(
        NeuronSet(loaded.layout.widths, {0: [1, 2], 2: [5, 63]}),
        loaded.info,
        MethodInfo(name="es"),
        MaskPrompts(harmful=side, harmless=side),
    )
    mask.write(tmp_path / "mask.json")
    rows = [{"prompt": p, "chosen": "I can't help", "rejected": f"Sure: {p}"} for p in HARMFUL]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return AlignRequest(
        model=str(tiny_llama),
        mask=tmp_path / "mask.json",
        pairs=tmp_path / "pairs.jsonl",
        steps=STEPS,
        batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.1,
        save_every=2,
    )


def run(request: AlignRequest, folder: Path, stop_at: int | None = None) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []

    steps_asked = 0

    def stop() -> bool:
        nonlocal steps_asked
        steps_asked += 1
        return steps_asked == stop_at

    align(request, folder, heard.append, stop)
    return [event for event in heard if event["kind"] == "train"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_same(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def unbroken(request_: AlignRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "unbroken"
    assert [event["step"] for event in run(request_, folder)] == list(range(1, STEPS + 1))
    return folder


def test_the_result_is_a_plain_model_with_the_mask_untouched(
    request_: AlignRequest, unbroken: Path
) -> None:
    start = load_model(request_.model, device="cpu")
    before, after = start.model.state_dict(), weights(unbroken)
    neurons = {0: [1, 2], 2: [5, 63]}
    touched = {name: torch.zeros_like(t, dtype=torch.bool) for name, t in before.items()}
    for layer, piece in neuron_slices(start.layout):
        for j in neurons.get(layer, []):
            touched[piece.parameter].select(piece.dim, j).fill_(True)
    for name, tensor in before.items():
        changed = after[name] != tensor
        assert not (changed & touched[name]).any(), name
        if name.startswith("model.layers."):
            assert changed[~touched[name]].float().mean() > 0.9, name
        else:
            assert not changed.any(), name
    AutoTokenizer.from_pretrained(unbroken)
    assert not (unbroken / "checkpoints").exists()
    assert resolve(str(unbroken)).ancestors == [start.folder.fingerprint]
    card = json.loads((unbroken / "safeneuron.json").read_text("utf-8"))
    assert card["figures"]["frozen_numbers"] == 4 * (3 * 32 + 2)
    assert card["pairs"]["kept"] == len(HARMFUL)


def test_a_finished_folder_is_not_trained_again(request_: AlignRequest, unbroken: Path) -> None:
    stamp = (unbroken / "model.safetensors").stat().st_mtime_ns
    assert run(request_, unbroken) == []
    assert (unbroken / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(SafeNeuronError, match="another run"):
        run(request_.model_copy(update={"seed": 1}), unbroken)


def test_an_unfinished_folder_is_gone_on_with_by_its_own_run_alone(
    request_: AlignRequest, unbroken: Path, tmp_path: Path
) -> None:
    folder, mask = tmp_path / "cancelled", tmp_path / "mask.json"
    run(request_, folder, stop_at=3)

    def refused(**update: Any) -> None:
        with pytest.raises(SafeNeuronError, match="another run, which has not ended"):
            run(request_.model_copy(update=update), folder)

    refused(recipe="dpo")
    refused(seed=1)
    # The same path, and other neurons in it.
    first = read_mask(mask)
    others = NeuronSet(first.model.neurons_per_layer, {1: [3]})
    assert first.prompts is not None
    MaskFile.of(others, first.model, first.method, first.prompts).write(mask)
    refused()
    # The same neurons in another place.
    first.write(tmp_path / "moved.json")
    moved = request_.model_copy(update={"mask": tmp_path / "moved.json"})
    assert [event["step"] for event in run(moved, folder)] == list(range(4, STEPS + 1))
    assert_same(folder, unbroken)
    assert not (folder / "run.json").exists()


def test_a_finished_folder_stands_while_all_that_made_it_does(
    request_: AlignRequest, unbroken: Path, tmp_path: Path
) -> None:
    assert standing(request_, unbroken)
    assert not standing(request_, tmp_path / "elsewhere")
    # Weights that are gone are made again.
    (unbroken / "model.safetensors").unlink()
    assert not standing(request_, unbroken)
    assert len(run(request_, unbroken)) == STEPS
    assert standing(request_, unbroken)
    # Other pairs under the same name.
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(pairs.read_text("utf-8").splitlines()[1:]), "utf-8")
    with pytest.raises(SafeNeuronError, match="the model of another run"):
        standing(request_, unbroken)


def test_a_record_that_is_none_is_told_in_one_line(request_: AlignRequest, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "run.json").write_text("{", "utf-8")
    with pytest.raises(SafeNeuronError, match=r"run\.json does not say which run"):
        run(request_, folder)


def test_what_only_the_attack_needs_is_read_before_training(
    request_: AlignRequest, unbroken: Path, tmp_path: Path
) -> None:
    asked = watched(request_, tmp_path)
    folder = tmp_path / "never"
    for wrong in (
        {"attacked": "nosuch.txt"},
        {"find_harmless": "nosuch.txt"},
        {"recipe": "dpo", "mask": tmp_path / "gone.json"},
        {"attack": False, "held_harmful": "nosuch.txt"},
    ):
        with pytest.raises(SafeNeuronError, match=r"nosuch\.txt|gone\.json"):
            run(asked.model_copy(update=wrong), folder)
        assert not folder.exists()

    # An attack may be asked for when training is long done, but not mixed up with another.
    later = request_.model_copy(
        update={
            name: getattr(asked, name)
            for name in ("attack", "attacked", "attacked_harmless", "attack_tokens")
        }
        | {"attack_settings": ("ORI", "FULL")}
    )
    assert run(later, unbroken) == []
    assert "| after | FULL |" in (unbroken / "README.md").read_text("utf-8")
    with pytest.raises(SafeNeuronError, match="of other prompts or settings; move it away"):
        run(later.model_copy(update={"attack_tokens": 5}), unbroken)


def test_a_part_of_a_file_is_drawn_with_the_seed(request_: AlignRequest, tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        update = {"total": 8, "seed": seed, "steps": 1}
        run(request_.model_copy(update=update), tmp_path / name)
        rows = (tmp_path / name / "pairs.jsonl").read_text("utf-8").splitlines()
        drawn.append([json.loads(row)["prompt"] for row in rows])
        report = json.loads((tmp_path / name / "pairs.json").read_text("utf-8"))
        assert report["kept"] == len(rows) == 8
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) != set(HARMFUL[:8])
    with pytest.raises(SafeNeuronError, match="20 of 20 pairs are usable where 21 are asked for"):
        run(request_.model_copy(update={"total": 21}), tmp_path / "more")


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("dpo", r"\); [\d,]+ numbers trained\."),
        ("safeneuron", r"392 numbers of the mask's neurons held bit-identical, [\d,]+ trained\."),
        ("sn-tune", r"392 numbers of the mask's neurons trained, the other [\d,]+ of the same"),
    ],
)
def test_the_card_says_what_was_held(
    recipe: str, told: str, request_: AlignRequest, tmp_path: Path
) -> None:
    asked = {**request_.model_dump(), "recipe": recipe, "steps": 1}
    run(AlignRequest(**asked), tmp_path / "out")
    assert re.search(told, (tmp_path / "out" / "README.md").read_text("utf-8"))


def test_cancel_then_resume(request_: AlignRequest, unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cancelled"
    assert [event["step"] for event in run(request_, folder, stop_at=3)] == [1, 2, 3]
    assert not (folder / "config.json").exists()
    assert [event["step"] for event in run(request_, folder)] == list(range(4, STEPS + 1))
    assert_same(folder, unbroken)


def test_sigkill_then_resume(request_: AlignRequest, unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    (tmp_path / "request.json").write_text(request_.model_dump_json(), "utf-8")
    # The process dies by SIGKILL as soon as it has told of step 5.
    code = (
        "import os, signal, sys, pathlib\n"
        "from analysis.alignment import align\n"
        "from analysis.align_requests import AlignRequest\n"
        "request = AlignRequest.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "def hear(event):\n"
        "    if event.get('step') == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "align(request, pathlib.Path(sys.argv[2]), hear, lambda: False)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "request.json"), str(folder)]
    died = subprocess.run(command, capture_output=True, check=False, timeout=300)
    assert died.returncode == -signal.SIGKILL
    assert not (folder / "config.json").exists()
    steps = [event["step"] for event in run(request_, folder)]
    assert steps == [5, 6, 7, 8]
    assert_same(folder, unbroken)


def test_a_half_written_checkpoint_is_passed_over(
    request_: AlignRequest, unbroken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "torn"
    run(request_, folder, stop_at=4)
    torn = folder / "checkpoints" / "checkpoint-4"
    (torn / "whole").unlink()
    (torn / "model.safetensors").write_bytes(b"torn")
    assert run(request_, folder)[0]["step"] == 3
    assert_same(folder, unbroken)


def test_zeroing_changes_training(request_: AlignRequest, unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "freeze-only"
    run(request_.model_copy(update={"zero": False}), folder)
    first, second = weights(folder), weights(unbroken)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_pairs_made_from_the_model(request_: AlignRequest, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(HARMFUL[:6]), "utf-8")
    made = request_.model_copy(
        update={
            "pairs": None,
            "harmful": str(prompts),
            "harmless": str(prompts),
            "steps": 1,
            "answer_tokens": 8,
            "recipe": "dpo",
        }
    )
    folder = tmp_path / "made"
    run(made, folder)
    rows = (folder / "pairs.jsonl").read_text("utf-8").splitlines()
    report = json.loads((folder / "pairs.json").read_text("utf-8"))
    assert len(rows) == report["kept"] > 0
    assert not (folder / "mask.json").exists()


def test_bad_input_writes_nothing(request_: AlignRequest, tmp_path: Path) -> None:
    folder = tmp_path / "never"

    def refused(message: str, **update: Any) -> None:
        with pytest.raises(SafeNeuronError, match=message):
            run(request_.model_copy(update=update), folder)
        assert not folder.exists()

    refused("needs --mask", mask=None)
    refused("no model", model="nosuch")
    refused("cannot read", mask=tmp_path / "gone.json")
    blocked = tmp_path / "blocked"
    blocked.write_text("", "utf-8")
    with pytest.raises(SafeNeuronError, match="cannot write"):
        run(request_, blocked / "out")
    mask = MaskFile.model_validate_json((tmp_path / "mask.json").read_text("utf-8"))
    nothing = mask.model_copy(update={"neurons": {}, "count": 0, "fraction": 0.0})
    nothing.write(tmp_path / "nothing.json")
    refused("names no neurons", mask=tmp_path / "nothing.json")


def test_a_loss_that_is_no_number_ends_in_one_line(request_: AlignRequest, tmp_path: Path) -> None:
    with pytest.raises(SafeNeuronError, match="not a number"):
        run(request_.model_copy(update={"learning_rate": 1e30}), tmp_path / "nan")


def test_safety_and_general_pairs_are_mixed(request_: AlignRequest, tmp_path: Path) -> None:
    safety = [
        {"prompt": p, "response_0": "Sure", "response_1": "I can't", "safer_response_id": 1}
        for p in HARMFUL
    ]
    general = [{"prompt": p, "chosen": "Gladly.", "rejected": "Hm."} for p in HARMLESS]
    general += [general[0], general[1] | {"chosen": "Hm."}]
    for name, rows in (("safety", safety), ("general", general)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    asked = {
        **request_.model_dump(),
        "pairs": None,
        "safety": str(tmp_path / "safety.jsonl"),
        "general": str(tmp_path / "general.jsonl"),
        "steps": 1,
    }
    heard: list[dict[str, Any]] = []
    folder = tmp_path / "mixed"
    align(AlignRequest(**asked), folder, heard.append, lambda: False)
    report = json.loads((folder / "pairs.json").read_text("utf-8"))
    # All 20 harmless prompts of 70 %, and the share of harmful ones that goes with them.
    assert (report["kept"], report["safety"]) == (28, 8)
    assert (report["duplicate"], report["equal"]) == (1, 1)
    assert [source["pairs"] for source in report["sources"]] == [20, 22]
    card = json.loads((folder / "safeneuron.json").read_text("utf-8"))
    assert card["pairs"]["sources"][0]["sha256"] == report["sources"][0]["sha256"]
    told = next(event["text"] for event in heard if event["kind"] == "note")
    assert "28 pairs used; left out: 1 with chosen = rejected, 1 repeated" in told
    with pytest.raises(SafeNeuronError, match="not both"):
        parse_request(AlignRequest, asked | {"pairs": tmp_path / "general.jsonl"})


def watched(request: AlignRequest, tmp_path: Path) -> AlignRequest:
    """The same run with held-out looks and an attack before and after."""
    for name, prompts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts), "utf-8")
    (tmp_path / "attacked.json").write_text(json.dumps(["Rob a shop", "Pick a lock"]), "utf-8")
    changed = {
        "evaluate_every": 3,
        "held_out": 4,
        "held_harmful": str(tmp_path / "attacked.json"),
        "held_harmless": str(tmp_path / "harmless.json"),
        "find_harmful": str(tmp_path / "harmful.json"),
        "find_harmless": str(tmp_path / "harmless.json"),
        "attack": True,
        "attacked": str(tmp_path / "attacked.json"),
        "attacked_harmless": str(tmp_path / "attacked.json"),
        "attack_settings": ("ORI", "FULL", "AGAIN"),
        "attack_tokens": 4,
        "dtype": "float32",
    }
    return request.model_copy(update=changed)


def test_held_out_looks_resume_and_the_card_shows_the_attack(
    request_: AlignRequest, tmp_path: Path
) -> None:
    asked = watched(request_, tmp_path)
    heard: list[dict[str, Any]] = []
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    # Stopped at a step, and then while it attacks; the store has no attack on it yet.
    run(asked, broken, stop_at=5)
    again: list[dict[str, Any]] = []

    def in_the_attack() -> bool:
        return (broken / "attack-before.json").is_file()

    assert not align(asked, broken, again.append, in_the_attack).finished
    steps = [event["step"] for event in again if event["kind"] == "held-out"]
    assert steps == [6, STEPS]
    assert align(asked, broken, again.append, lambda: False).finished

    done = align(asked, whole, heard.append, lambda: False)
    looks = [event for event in heard if event["kind"] == "held-out"]
    assert [look["step"] for look in looks] == [0, 3, 6, STEPS]
    assert looks[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert looks[-1]["margin"] > 0
    assert looks[-1]["kl"] > 0
    card = json.loads((whole / "safeneuron.json").read_text("utf-8"))
    assert (card["pairs"]["kept"], card["pairs"]["trained"]) == (20, 16)

    text = (whole / "README.md").read_text("utf-8")
    assert "## The attack, before and after" in text
    assert "| before | ORI |" in text
    assert "| after | AGAIN |" in text
    assert card["mask"][:12] in text
    assert card["pairs"]["sources"][0]["sha256"][:12] in text
    assert "peft " in text
    assert done.finished

    assert_same(whole, broken)
    assert (broken / "README.md").read_text("utf-8").count("| after |") == text.count("| after |")


def test_patience_ends_a_run_early(request_: AlignRequest, tmp_path: Path) -> None:
    asked = watched(request_, tmp_path).model_copy(
        update={"attack": False, "evaluate_every": 1, "patience": 1, "learning_rate": 1e-30}
    )
    folder = tmp_path / "early"
    heard: list[dict[str, Any]] = []
    done = align(asked, folder, heard.append, lambda: False)
    assert done.finished
    assert done.summary["steps"] == 1
    assert any("ended at step" in event.get("text", "") for event in heard)
    with pytest.raises(SafeNeuronError, match="needs evaluate-every"):
        parse_request(AlignRequest, {"model": "m", "patience": 1})
