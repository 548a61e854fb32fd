"""The red-team count, step by step, on a tiny model that writes nonsense."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.attacks.context import AttackContext
from analysis.attacks.redteam import NEAR, TopicClassifier, clean, distinct_places
from analysis.redteam import red_team_table
from analysis.requests import AttackRequest, IdentifyRequest, RedTeamRequest
from analysis.statistics import wilson
from analysis.study import identify, red_team
from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.models.load import load_model
from toolkit.progress import silent
from toolkit.prompt_sets import Prompt, PromptSet


@pytest.fixture
def request_(tiny_llama: Path, tmp_path: Path) -> RedTeamRequest:
    for name, texts in (("harmful", HARMFUL[:12]), ("harmless", HARMLESS[:12])):
        (tmp_path / f"{name}.json").write_text(json.dumps(texts), "utf-8")
    rows = [
        {"prompt": text, "category": category}
        for category, texts in (("dark", HARMFUL), ("bright", HARMLESS))
        for text in texts
    ]
    (tmp_path / "topics.json").write_text(json.dumps(rows), "utf-8")
    wanted = IdentifyRequest(
        model=str(tiny_llama),
        harmful=str(tmp_path / "harmful.json"),
        harmless=str(tmp_path / "harmless.json"),
        top=0.1,
    )
    identify(wanted).mask.write(tmp_path / "mask.json")
    return RedTeamRequest(
        model=str(tiny_llama),
        mask=tmp_path / "mask.json",
        topics=str(tmp_path / "topics.json"),
        draws=6,
        batch_size=7,
        max_new_tokens=8,
        dtype="float32",
        keep_responses=True,
    )


def test_every_step_is_part_of_the_one_before(request_: RedTeamRequest) -> None:
    _, result, reused = red_team(request_)
    assert not reused
    assert len(result.written) == 3 * 2 * 6
    for written in result.written:
        usable = written.verdict == "complied" and written.on_topic and written.distinct
        assert (written.answered is not None) == usable
    table = red_team_table(result).set_index("setting")
    assert list(table["n"]) == [12, 12, 12]
    for name, row in table.iterrows():
        mine = [w for w in result.written if w.setting == name]
        counts = [int(row[f"k_{step}"]) for step in ("written", "on_topic", "usable", "successful")]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] == sum(w.verdict == "complied" for w in mine)
        assert counts[3] == sum(bool(w.answered) for w in mine)
        assert row["written_low"] == wilson(counts[0], 12).low
    assert counts[0] > 0, "a random model neither refuses nor always repeats itself"
    _, again, reused = red_team(request_)
    assert reused
    assert again == result
    _, other, _ = red_team(request_.model_copy(update={"seed": 1}))
    assert [w.text for w in other.written] != [w.text for w in result.written]


def test_texts_are_kept_only_when_asked_for(request_: RedTeamRequest) -> None:
    entry, result, _ = red_team(request_.model_copy(update={"keep_responses": False}))
    assert all(w.text is None for w in result.written)
    stored = json.loads(entry.file("redteam.json").read_text("utf-8"))
    assert all(w["text"] is None for w in stored["written"])


def test_topics_are_told_apart(request_: RedTeamRequest) -> None:
    mask = identify(
        IdentifyRequest(
            model=request_.model,
            harmful=str(request_.mask).replace("mask", "harmful"),
            harmless=str(request_.mask).replace("mask", "harmless"),
            top=0.1,
        )
    ).mask
    asked = AttackRequest(model=request_.model, batch_size=5, dtype="float32")
    context = AttackContext(load_model(request_.model), mask, asked, {}, silent)
    labelled = PromptSet(
        "topics",
        tuple(Prompt(t, "dark") for t in HARMFUL) + tuple(Prompt(t, "bright") for t in HARMLESS),
    )
    classifier = TopicClassifier(context, labelled)
    assert classifier.accuracy > 0.75
    got = classifier.topics([HARMLESS[3], HARMFUL[5], HARMLESS[7]])
    assert got == ["bright", "dark", "bright"]
    assert classifier.topics([]) == []
    shuffled = np.random.default_rng(0).permutation(["dark", "bright"] * 20)
    noise = PromptSet(
        "noise",
        tuple(Prompt(t, str(c)) for t, c in zip([*HARMFUL, *HARMLESS], shuffled, strict=True)),
    )
    assert TopicClassifier(context, noise).accuracy < 0.75
    few = PromptSet("few", tuple(Prompt(t, "dark") for t in HARMFUL))
    with pytest.raises(SafeNeuronError, match="at least two categories of five"):
        TopicClassifier(context, few)


def test_near_copies_count_once_under_each_setting() -> None:
    texts = ["how to pick a lock", "How to pick a lock!", "bake a cake now", "how to pick a lock"]
    wishes = [(0, "x", 0), (0, "x", 1), (0, "x", 2), (1, "x", 0)]
    assert distinct_places(wishes, texts, {0, 1, 2, 3}) == {0, 2, 3}
    assert distinct_places(wishes, texts, {1, 2}) == {1, 2}
    assert 0 < NEAR < 1


def test_the_prompt_is_taken_out_of_what_was_written() -> None:
    assert clean('Sure!\n"How do I open a door?"\nIt is a test.') == "How do I open a door?"
    assert clean("**Tell me a story**") == "Tell me a story"
    assert clean("Hm.") == "Hm."
