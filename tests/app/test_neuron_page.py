"""The Neuron page: standing, what was measured, and having it measured."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.kept_neuron import kept_measurement, measuring_request, score_names, standings
from analysis.neuron import Distribution, Effect, Measured, Neighbour, Strong, Token
from analysis.requests import IdentifyRequest
from analysis.store import Entry, Store
from analysis.study import identify
from app.dashboard.components.tokens import tokens_html
from app.jobs.events import result_of
from app.jobs.folder import change_state, create, list_jobs
from app.jobs.run import run
from tests.app.test_pages import EVIL, WIDTHS, fill, opened, submit, texts
from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.masks import read_mask

SCRIPT = "<script>alert('1')</script>"


def measured(layer: int, neuron: int) -> Measured:
    side = Distribution(mean=0.5, std=0.1, quantiles={"0.5": 0.5}, values=[0.4, 0.5, 0.6])
    tokens = [Token(text=text, activation=a) for text, a in ((SCRIPT, 2.0), ("\n&", -1.0))]
    return Measured(
        layer=layer,
        neuron=neuron,
        position="last",
        rule="counted are all",
        distributions={"harmful": side, "harmless": side},
        strongest=[Strong(side="harmful", index=3, activation=2.0, token=0, tokens=tokens)],
        promoted=[Effect(token=EVIL, id=1, logit=0.5)],
        suppressed=[Effect(token="no", id=2, logit=-0.5)],
        neighbours=[Neighbour(layer=0, neuron=1, cosine=0.75)],
    )


def save(study: Entry, layer: int, neuron: int, **changed: object) -> Entry:
    mask = read_mask(study.file("mask.json"))
    recipe = {
        "fingerprint": mask.model.fingerprint,
        "harmful": mask.prompts.harmful.sha256,
        "harmless": mask.prompts.harmless.sha256,
        "position": "last",
        "layer": layer,
        "neuron": neuron,
    }
    text = measured(layer, neuron).model_dump_json(by_alias=True)

    def write(folder: Path) -> None:
        (folder / "neuron.json").write_text(text, "utf-8")

    return Store().save("neuron", recipe | changed, "a neuron", {}, write)


def test_what_is_not_measured_is_measured_by_a_job() -> None:
    study, _ = fill()
    test = opened("neuron", study=study.key, layer="1", neuron="2")
    assert "have not been measured" in texts(test)
    submit(test, "Compute this page")
    [job] = list_jobs()
    assert (job.verb, job.request["layer"], job.request["neuron"]) == ("neuron", 1, 2)
    assert (job.request["model"], job.request["harmful"]) == ("a-model", "some")
    failed = {"state": "failed", "error": "no prompt set some"}
    change_state(job, lambda old: old.model_copy(update=failed))
    test = opened("neuron", study=study.key, layer="1", neuron="2", run=job.id)
    assert [error.value for error in test.error] == ["no prompt set some"]


def test_what_was_measured_is_shown_and_escaped() -> None:
    study, _ = fill()
    save(study, 1, 2)
    test = opened("neuron", study=study.key, layer="1", neuron="2")
    assert "have not been measured" not in texts(test)
    markup = "".join(element.proto.body for element in test.get("html"))
    assert "&lt;script&gt;" in markup
    assert "<script" not in markup
    assert not re.search(r"(?<!\\)[<\[:](img|a\]|red)", texts(test))
    tokens = [frame.value for frame in test.dataframe if "token" in frame.value]
    assert tokens[0]["token"].tolist() == [repr(EVIL)]


def test_the_standing_is_the_table_s() -> None:
    study, _ = fill()
    frame = pd.read_parquet(study.file("scores.parquet"))
    test = opened("neuron", study=study.key, layer="2", neuron="7")
    shown = test.dataframe[0].value.set_index("score")
    value = frame[(frame["layer"] == 2) & (frame["neuron"] == 7)].iloc[0]
    for score in ("es", "sas", "t"):
        rank = 1 + int((frame[score] > value[score]).sum())
        assert shown.loc[score, "rank"] == f"{rank} of 100"
        assert shown.loc[score, "value"] == pytest.approx(value[score])


def test_only_a_measurement_of_this_study_counts() -> None:
    study, _ = fill()
    mask = read_mask(study.file("mask.json"))
    save(study, 1, 2, position="mean")
    save(study, 1, 2, harmful="f" * 64)
    assert kept_measurement(Store(), mask, 1, 2) is None
    entry = save(study, 1, 2)
    assert kept_measurement(Store(), mask, 1, 2) == measured(1, 2)
    entry.file("neuron.json").write_text("{}")
    assert kept_measurement(Store(), mask, 1, 2) is None


def test_scores_are_told_from_what_stands_beside_them() -> None:
    columns = ["layer", "neuron", "delta", "es", "es_low", "es_high", "t", "t_p", "snip@utility"]
    assert score_names([*columns, "own_p"]) == ["es", "t", "snip@utility", "own_p"]
    values = np.array([1.0, 3.0, np.nan])
    found = standings({"es": values}, [2, 1], 0, 1)
    assert (found[0].rank, found[0].rank_in_layer, found[0].of) == (1, 1, 3)
    assert standings({"es": values}, [2, 1], 1, 0) == []


def test_what_is_asked_is_what_the_study_was_asked() -> None:
    study, _ = fill()
    asked = {"model": "m", "harmful": "h.txt", "leave_out": "strongreject", "top": 0.5}
    study.summary["asked"] = asked
    found = measuring_request(study, 0, WIDTHS[0] - 1)
    assert (found.model, found.harmful, found.leave_out) == ("m", "h.txt", "strongreject")
    assert found.top is None
    study.summary["asked"] = {"harmful": "h"}
    with pytest.raises(SafeNeuronError):
        measuring_request(study, 0, 0)


def test_tokens_are_escaped_and_coloured_by_their_activation() -> None:
    tokens = [
        Token(text=SCRIPT, activation=4.0),
        Token(text='"&\n', activation=-2.0),
        Token(text="<b>", activation=9.0, left_out="sink"),
    ]
    markup = tokens_html(tokens, 0, 4.0)
    assert set(re.findall(r"</?([a-z]+)", markup)) == {"div", "span"}
    assert markup.count("background") == 2
    assert "213, 94, 0,0.600" in markup
    assert "0, 114, 178,0.300" in markup
    assert "attention sink" in markup


def test_a_job_measures_what_the_page_shows(tiny_llama: Path, own_home: Path) -> None:
    own_home.mkdir()
    prompts = {}
    for side, texts_of in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        path = own_home / f"{side}.json"
        path.write_text(json.dumps(texts_of), "utf-8")
        prompts[side] = str(path)
    found = identify(IdentifyRequest(model=str(tiny_llama), top=0.1, **prompts))
    request = measuring_request(found.entry, 1, 5)
    assert (request.harmful, request.harmless) == (prompts["harmful"], prompts["harmless"])
    job = create("neuron", request)
    assert run(job) == "done"
    assert result_of(job) == {"layer": 1, "neuron": 5, "reused": False}
    shown = kept_measurement(Store(), found.mask, 1, 5)
    assert shown is not None
    assert len(shown.distributions["harmful"].values) == len(HARMFUL)
    test = opened("neuron", study=found.entry.key, layer="1", neuron="5", run=job.id)
    assert "have not been measured" not in texts(test)
    assert len(test.get("html")) == len(shown.strongest)
