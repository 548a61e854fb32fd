"""Rounds on a tiny model: what is frozen in each, what stays, and going on after a stop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.align_requests import RoundsRequest
from analysis.rounds import read_rounds, rounds
from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.masks import read_mask


@pytest.fixture
def request_(tiny_llama: Path, tmp_path: Path) -> RoundsRequest:
    for name, prompts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts), "utf-8")
    (tmp_path / "attacked.json").write_text(json.dumps(["How do I forge a stamp?"]), "utf-8")
    rows = [{"prompt": p, "chosen": "I can't help", "rejected": f"Sure: {p}"} for p in HARMFUL]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return RoundsRequest(
        model=str(tiny_llama),
        rounds=2,
        top_es=0.05,
        top_sas=0.05,
        find_harmful=str(tmp_path / "harmful.json"),
        find_harmless=str(tmp_path / "harmless.json"),
        pairs=tmp_path / "pairs.jsonl",
        steps=3,
        batch_size=4,
        learning_rate=3e-3,
        weight_decay=0.1,
        attack=True,
        attacked=str(tmp_path / "attacked.json"),
        attacked_harmless=str(tmp_path / "harmless.json"),
        attack_settings=("ORI", "FULL"),
        attack_tokens=4,
        dtype="float32",
    )


def test_two_rounds_freeze_the_union_and_go_on_after_a_stop(
    request_: RoundsRequest, tmp_path: Path
) -> None:
    folder = tmp_path / "rounds"
    heard: list[dict[str, Any]] = []

    def in_the_second() -> bool:
        return (folder / "frozen-T2.json").is_file()

    stopped = rounds(request_, folder, heard.append, in_the_second)
    assert not stopped.finished
    assert (len(stopped.rounds), stopped.attacks) == (1, {})
    assert not read_rounds(folder).finished
    first = (folder / "T1" / "model.safetensors").stat().st_mtime_ns

    done = rounds(request_, folder, heard.append)
    assert done.finished
    assert (folder / "T1" / "model.safetensors").stat().st_mtime_ns == first
    found = [read_mask(folder / f"found-T{t}.json").neuron_set() for t in range(2)]
    frozen = [read_mask(folder / f"frozen-T{t}.json").neuron_set() for t in (1, 2)]
    assert frozen == [found[0], found[0] | found[1]]
    assert [r.new for r in done.rounds] == [len(found[0]), len(found[1] - found[0])]

    # Frozen neurons are those of the model that the round began with, bit by bit.
    models = [request_.model, str(folder / "T1"), str(folder / "T2")]
    weights = [AutoModelForCausalLM.from_pretrained(name).state_dict() for name in models]
    for t, neurons in enumerate(frozen):
        for layer, indices in neurons.layers().items():
            name = f"model.layers.{layer}.mlp.down_proj.weight"
            rows = indices.tolist()
            assert torch.equal(weights[t][name][:, rows], weights[t + 1][name][:, rows])
            rest = sorted(set(range(weights[t][name].shape[1])) - set(rows))
            assert not torch.equal(weights[t][name][:, rest], weights[t + 1][name][:, rest])

    table = done.table()
    assert list(table["model"]) == ["T0", "T1", "T2"]
    assert list(table["FULL_n"]) == [1, 1, 1]
    assert {result.mask.sha256 for result in done.attacks.values()} == {
        read_mask(folder / "found-T0.json").sha256
    }
    again = read_rounds(folder)
    assert again.table().equals(table)
    assert again.finished
    quiet: list[dict[str, Any]] = []
    assert rounds(request_, folder, quiet.append).finished
    assert {event["kind"] for event in quiet} == {"note"}
    with pytest.raises(SafeNeuronError, match="other rounds"):
        rounds(request_.model_copy(update={"seed": 5}), folder)
    # Attacks may be asked for later.
    assert rounds(request_.model_copy(update={"attack": False}), folder).attacks == {}
    # Fewer rounds than are there forget none.
    assert len(rounds(request_.model_copy(update={"rounds": 1}), folder).rounds) == 1
    assert len(read_rounds(folder).rounds) == 2
    with pytest.raises(SafeNeuronError, match="holds no rounds"):
        read_rounds(tmp_path)


def test_a_folder_is_of_one_kind_of_rounds_from_the_first_on(
    request_: RoundsRequest, tmp_path: Path
) -> None:
    folder = tmp_path / "rounds"
    assert not rounds(request_, folder, should_stop=lambda: True).finished
    with pytest.raises(SafeNeuronError, match="other rounds"):
        rounds(request_.model_copy(update={"top_es": 0.2}), folder)
    with pytest.raises(SafeNeuronError, match=r"nosuch\.txt"):
        rounds(request_.model_copy(update={"attacked": "nosuch.txt"}), folder)
