"""The study on a tiny model: what removal does, what is stored, and what is not done twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from analysis.requests import AttackRequest, IdentifyRequest
from analysis.store import Store
from analysis.study import attack, identify
from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.masks import read_mask
from toolkit.models.load import load_model


@pytest.fixture
def request_(tiny_llama: Path, tmp_path: Path) -> IdentifyRequest:
    for name, prompts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts), "utf-8")
    return IdentifyRequest(
        model=str(tiny_llama),
        harmful=str(tmp_path / "harmful.json"),
        harmless=str(tmp_path / "harmless.json"),
        top=0.1,
    )


def test_a_threshold_reuses_the_moments(request_: IdentifyRequest) -> None:
    first = identify(request_)
    again = identify(request_)
    other = identify(request_.model_copy(update={"top": None, "tau_es": 0.5, "tau_sas": 1.0}))
    moved = identify(request_.model_copy(update={"position": "mean"}))
    assert (first.reused, again.reused, other.reused, moved.reused) == (False, True, True, False)
    assert first.entry.key == again.entry.key
    kinds = [entry.kind for entry in Store().entries()]
    assert (kinds.count("moments"), kinds.count("identify")) == (2, 3)


def test_a_damaged_result_is_made_again(request_: IdentifyRequest) -> None:
    first = identify(request_)
    moments = next(e for e in Store().entries("moments"))
    damaged = moments.file("moments.safetensors")
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    again = identify(request_)
    assert not again.reused
    assert again.mask.neurons == first.mask.neurons


ASKING = """
import sys
from analysis.requests import IdentifyRequest
from analysis.study import identify
print(identify(IdentifyRequest.model_validate_json(sys.argv[1])).reused)
"""


def test_two_processes_capture_once(request_: IdentifyRequest) -> None:
    command = [sys.executable, "-c", ASKING, request_.model_dump_json()]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=300)[0].strip() for process in both]
    assert sorted(told) == ["False", "True"]
    assert [entry.kind for entry in Store().entries()] == ["identify", "moments"]


def test_progress_counts_prompts(request_: IdentifyRequest) -> None:
    heard: list[tuple[str, int, int]] = []
    identify(request_, lambda *step: heard.append(step))
    done = [step[1] for step in heard]
    assert done == sorted(done)
    assert heard[-1] == ("capture", len(HARMFUL) + len(HARMLESS), len(HARMFUL) + len(HARMLESS))


def test_no_neuron_passes(request_: IdentifyRequest) -> None:
    asked = request_.model_copy(update={"top": None, "tau_es": 1e6, "tau_sas": 1e6})
    with pytest.raises(SafeNeuronError, match="lower the thresholds"):
        identify(asked)
    assert not Store().entries("identify")


def test_attack_removes_what_the_mask_names(request_: IdentifyRequest, tmp_path: Path) -> None:
    found = identify(request_)
    mask_path = tmp_path / "mask.json"
    found.mask.write(mask_path)
    asked = AttackRequest(
        model=request_.model,
        mask=mask_path,
        harmful=request_.harmful,
        harmless=request_.harmless,
        settings=("ORI", "FULL"),
        max_new_tokens=6,
        dtype="float32",
        keep_responses=True,
    )
    done = attack(asked)
    assert attack(asked).reused

    # An independent attack: the same weights with the neurons' columns written to zero.
    loaded = load_model(request_.model)
    for layer, indices in read_mask(mask_path).neuron_set().layers().items():
        with torch.no_grad():
            loaded.model.model.layers[layer].mlp.down_proj.weight[:, indices.tolist()] = 0.0
    told = {a.index: a for a in done.result.answers if (a.setting, a.side) == ("FULL", "harmful")}
    for index in (0, 7, 19):
        ids = loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": HARMFUL[index]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        new = loaded.model.generate(**ids, max_new_tokens=6, do_sample=False)
        text = loaded.tokenizer.decode(
            new[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert told[index].response == text


def test_a_mask_without_parts_has_no_es_setting(request_: IdentifyRequest, tmp_path: Path) -> None:
    found = identify(request_)
    path = tmp_path / "mask.json"
    found.mask.model_copy(update={"parts": {}}).write(path)
    asked = AttackRequest(model=request_.model, mask=path, settings=("ES",))
    with pytest.raises(SafeNeuronError, match="does not say which neurons ES chose"):
        attack(asked)
