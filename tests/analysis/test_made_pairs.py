"""Pairs made with another model's answers to avoid, for a model that refuses everything."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.arms import Protocol
from analysis.cell_maker import CellMaker
from analysis.made_pairs import allowed_prompts, require_refusing
from analysis.requests import parse_request
from analysis.rounds import rounds
from analysis.run_pairs import PAIRS, REPORT, run_pairs
from tests.tiny import HARMFUL, HARMLESS, save_tiny, tiny_tokenizer
from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import judge_refusal
from toolkit.models.load import load_model
from toolkit.models.sources import resolve
from toolkit.train.pairs import PairReport, PreferencePair, whole_sentences

ALIGNED, BASE = "smollm2-135m-aligned", "smollm2-135m-instruct"
TOKENS = 8


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Of another family and size than the model that trains."""
    return save_tiny(tmp_path / "other", "gpt2", seed=3)


@pytest.fixture
def asked(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    for name, prompts in (("harmful", HARMFUL[:6]), ("harmless", HARMLESS[:6])):
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts), "utf-8")
    return {
        "model": str(tiny_llama),
        "recipe": "dpo",
        "harmful": str(tmp_path / "harmful.json"),
        "harmless": str(tmp_path / "harmless.json"),
        "answer_tokens": TOKENS,
        "steps": 2,
        "batch_size": 6,
        "dtype": "float32",
    }


def made(values: dict[str, Any], folder: Path) -> tuple[list[PreferencePair], PairReport]:
    folder.mkdir()
    request = parse_request(AlignRequest, values)
    return run_pairs(request, folder, load_model(request.model), None, lambda _: None)


def greedy(folder: Path, prompt: str) -> str:
    """What a model says, by transformers' own generate."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tiny_tokenizer()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    told = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
    )
    return str(tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True))


def test_what_is_rejected_comes_from_the_other_model(
    asked: dict[str, Any], other: Path, tmp_path: Path
) -> None:
    pairs, report = made(asked | {"rejected_from": str(other)}, tmp_path / "run")
    found = {pair.prompt: pair for pair in pairs}
    said = {prompt: greedy(other, prompt) for prompt in HARMFUL[:6]}
    complied = {
        text: told for text, told in said.items() if judge_refusal(told).verdict == "complied"
    }
    assert complied
    assert {text: found[text].rejected for text in complied} == {
        text: whole_sentences(told) for text, told in complied.items()
    }
    assert report.safety == len(complied)
    assert all(judge_refusal(found[text].chosen).verdict == "refused" for text in complied)
    # Harmless prompts are answered by the model that trains.
    model = Path(asked["model"])
    answered = [pair for pair in pairs if pair.prompt in HARMLESS]
    assert answered
    assert all(p.chosen == whole_sentences(greedy(model, p.prompt)) for p in answered)
    (source,) = [source for source in report.sources if source["role"] == "rejected"]
    assert source["sha256"] == resolve(str(other)).fingerprint


def test_the_other_model_needs_no_known_mlp(asked: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "experts"
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "intermediate_size": 32, "num_local_experts": 2}
    config = AutoConfig.for_model(
        "mixtral", vocab_size=600, pad_token_id=0, bos_token_id=1, eos_token_id=2, **small
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(SafeNeuronError, match="not supported"):
        load_model(str(folder))
    _, report = made(asked | {"rejected_from": str(folder)}, tmp_path / "run")
    assert report.safety


def test_what_is_attacked_later_stays_out(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "attacked.json").write_text(json.dumps(HARMFUL[1:3]), "utf-8")
    left_out = {"leave_out": str(tmp_path / "attacked.json")}
    pairs, report = made(asked | left_out, tmp_path / "run")
    assert not {pair.prompt for pair in pairs} & set(HARMFUL[1:3])
    assert [source["pairs"] for source in report.sources if source["role"] == "harmful"] == [4]
    everything = {"leave_out": asked["harmful"]}
    with pytest.raises(SafeNeuronError, match="holds no prompts"):
        made(asked | everything, tmp_path / "none")

    searched = asked | {"recipe": "adaptive", "leave_out": str(tmp_path / "attacked.json")}
    prompts = allowed_prompts(parse_request(AlignRequest, searched), asked["harmful"])
    assert prompts.texts == [HARMFUL[0], *HARMFUL[3:6]]


def test_an_unfit_model_is_one_line(asked: dict[str, Any], other: Path, tmp_path: Path) -> None:
    def refused(message: str, **update: Any) -> None:
        with pytest.raises(SafeNeuronError, match=message) as told:
            made(asked | update, tmp_path / message)
        assert "\n" not in str(told.value)

    refused("rejected-from: no model 'nosuch'", rejected_from="nosuch")
    refused("takes 256 tokens", rejected_from=str(other), answer_tokens=250)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(600)] + ["being caught"])
    tokenizer.save_pretrained(other)
    highest = len(tokenizer) - 1
    refused(f"its tokenizer has token {highest}, its model knows 600", rejected_from=str(other))
    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    refused("its tokenizer knows no word", rejected_from=str(other))


def test_pairs_that_do_not_teach_refusing_are_refused(asked: dict[str, Any]) -> None:
    request = parse_request(AlignRequest, asked)
    harmless = PreferencePair(HARMLESS[0], "Sure.", "I can't.")
    with pytest.raises(SafeNeuronError, match=r"complies with none .*--rejected-from"):
        require_refusing(request, [harmless], PairReport())
    report = PairReport()
    require_refusing(request, [harmless, PreferencePair(HARMFUL[0], "No.", "Sure.")], report)
    assert report.safety == 1


def test_an_embedded_model_rejects_what_its_base_says(tmp_path: Path) -> None:
    def takes(**values: Any) -> str | None:
        return parse_request(AlignRequest, values).rejected_from

    assert takes(model=ALIGNED) == takes(model=ALIGNED, preset="paper") == BASE
    assert takes(model=ALIGNED, rejected_from=ALIGNED) == ALIGNED
    assert takes(model=BASE) is None
    assert takes(model=str(tmp_path)) is None
    assert takes(model=ALIGNED, pairs=tmp_path) is None
    assert takes(model=ALIGNED, general="ultrafeedback") is None
    with pytest.raises(SafeNeuronError, match="for pairs that are made"):
        takes(model=ALIGNED, pairs=tmp_path, rejected_from=BASE)


def test_rounds_share_them_or_make_them_anew(
    asked: dict[str, Any], other: Path, tmp_path: Path
) -> None:
    values = asked | {
        "recipe": "safeneuron",
        "rejected_from": str(other),
        "rounds": 2,
        "steps": 1,
        "top_es": 0.05,
        "top_sas": 0.05,
        "find_harmful": asked["harmful"],
        "find_harmless": asked["harmless"],
        "learning_rate": 0.05,
    }
    for fresh in (False, True):
        folder = tmp_path / f"fresh-{fresh}"
        assert rounds(
            parse_request(RoundsRequest, values | {"fresh_pairs": fresh}), folder
        ).finished
        reports = [json.loads((folder / name / REPORT).read_text("utf-8")) for name in ("T1", "T2")]
        roles = [{source["role"] for source in report["sources"]} for report in reports]
        assert "rejected" in roles[0]
        assert ("rejected" in roles[1]) == fresh


def test_the_comparison_takes_them_from_where_its_protocol_says(
    asked: dict[str, Any], other: Path, tmp_path: Path
) -> None:
    prompts = (asked["harmful"], asked["harmless"])
    protocol = Protocol(
        model=asked["model"],
        rejected_from=str(other),
        pair_prompts=prompts,
        find_prompts=prompts,
        top_es=0.05,
        top_sas=0.05,
        steps=1,
        batch_size=6,
        dtype="float32",
    )
    maker = CellMaker(protocol, tmp_path / "work", lambda _: None)
    pairs = maker.pairs(0, maker.mask())
    assert pairs.name == PAIRS
    sources = json.loads((pairs.parent / REPORT).read_text("utf-8"))["sources"]
    assert str(other) in [source["name"] for source in sources]
    both = Protocol(**{**vars(protocol), "safety": str(pairs)})
    wrong = CellMaker(both, tmp_path / "else", lambda _: None)
    with pytest.raises(SafeNeuronError, match="for pairs that are made"):
        wrong.pairs(0, wrong.mask())
