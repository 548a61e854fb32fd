"""Topics: planted structure is recovered, each topic is stored, and bad prompts are refused."""

import json
from pathlib import Path

import pytest

from analysis.overlap.chance import P_FLOOR
from analysis.overlap.composition import composition
from analysis.overlap.kway import kway_table
from analysis.requests import IdentifyRequest
from analysis.store import Store
from analysis.study import identify
from analysis.topics import identify_topics
from tests.topics import TOPICS, planted_set, planted_topics, save_planted, write_prompts
from toolkit.errors import SafeNeuronError


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def request_(planted: Path, tmp_path: Path) -> IdentifyRequest:
    files = write_prompts(tmp_path)
    return IdentifyRequest(
        model=str(planted),
        harmful=str(files["topics"]),
        harmless=str(files["harmless"]),
        method="es",
        # The paper's for Qwen. The planted ones have 4.4 and more here; of a neuron at rest,
        # 1e-12 of rounding can be two deviations of 1e-12.
        tau_es=3.0,
        position="mean",
    )


@pytest.mark.parametrize("shared_control", [False, True])
def test_planted_structure_is_recovered(request_: IdentifyRequest, shared_control: bool) -> None:
    """Must hold 4: 10 core, 20 shared and 30 specific neurons over six topics."""
    topics = identify_topics(request_, shared_control=shared_control)
    sets = topics.sets()
    assert list(sets) == TOPICS
    for number, topic in enumerate(TOPICS):
        assert sets[topic] == planted_set(number), topic
    found = composition(sets)
    assert found.totals()["neurons"].tolist() == [10, 20, 30]
    times = {neuron: len(t) for neuron, t in planted_topics().items()}
    assert set(found.core) == {neuron for neuron, n in times.items() if n == 6}
    assert set(found.specific) == {neuron for neuron, n in times.items() if n == 1}
    assert found.p_core < 1e-6
    assert found.p_core >= P_FLOOR
    table = kway_table(sets).set_index("k")
    assert table.loc[6, "ratio"] == pytest.approx(10 / 60)
    assert table.loc[6, "ratio"] > 5 * table.loc[6, "ratio_chance"]


def test_each_topic_is_stored_by_itself(
    request_: IdentifyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    first = identify_topics(request_, lambda stage, *_: heard.append(stage))
    assert not first.reused
    assert list(dict.fromkeys(heard)) == [f"capture: {topic}" for topic in TOPICS]
    kinds = [entry.kind for entry in Store().entries()]
    assert (kinds.count("moments"), kinds.count("identify")) == (6, 6)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("toolkit.models.load.load_weights", refuse)
    again = identify_topics(request_)
    assert again.reused
    assert again.sets() == first.sets()
    # One of them by itself is the same result.
    part = {"harmful": f"{request_.harmful}#{TOPICS[2]}", "harmless": f"{request_.harmless}[2::6]"}
    alone = identify(request_.model_copy(update=part))
    assert alone.reused
    assert alone.mask.neuron_set() == first.sets()[TOPICS[2]]
    assert f"#{TOPICS[2]} against" in alone.entry.about.prompts


def test_the_model_is_loaded_once(
    request_: IdentifyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.models import load

    loads = []
    weights = load.load_weights

    def counted(*arguments: object) -> object:
        loads.append(1)
        return weights(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "load_weights", counted)
    identify_topics(request_)
    assert len(loads) == 1


def test_bad_topics(request_: IdentifyRequest, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "category": "one" if n < 12 else "few"} for n in range(15)]
    (tmp_path / "one.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "none.json").write_text(json.dumps(["a", "b"]), "utf-8")
    for change, told in (
        ({"harmful": str(tmp_path / "one.json")}, "has 1 topic of 10 prompts or more"),
        ({"harmful": str(tmp_path / "none.json")}, "has 0 topics of 10"),
        ({"harmless": f"{request_.harmless}[:30]"}, "leaves 5 harmless prompts to a topic"),
        ({"tau_es": 1e9}, "topic poison: no neuron passes es"),
    ):
        with pytest.raises(SafeNeuronError, match=told) as caught:
            identify_topics(request_.model_copy(update=change))
        assert "\n" not in str(caught.value)


def test_small_topics_are_left_out(request_: IdentifyRequest) -> None:
    topics = identify_topics(
        request_.model_copy(update={"harmful": f"{request_.harmful}[:37]"}), smallest=10
    )
    assert list(topics.masks) == TOPICS[:2]
    assert topics.left_out == {TOPICS[2]: 5}
