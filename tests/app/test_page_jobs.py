"""The Jobs and Settings pages: empty, waiting, in every state; logs; what is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qs

import pandas as pd
import pytest

from analysis.align_requests import AlignRequest
from analysis.kept_neuron import measuring_request
from analysis.requests import IdentifyRequest, parse_request
from app.dashboard.components.text import plain
from app.jobs.events import append_event
from app.jobs.folder import Phase, change_state, create, state_of
from app.jobs.process import here, started
from app.jobs.verbs import REQUESTS
from tests.app.test_pages import EVIL, fill, opened, submit, texts

PHASES = get_args(Phase)


def job_in(phase: Phase, model: str = "a-model") -> str:
    """A job in a state; those alive are this process, as far as their folder says."""
    job = create("align", AlignRequest(model=model))
    facts: dict[str, object] = {"state": phase}
    if phase in {"running", "cancelling"}:
        facts |= {"host": here(), "pid": os.getpid(), "started": started(os.getpid())}
    if phase == "failed":
        facts["error"] = "no model <b>x</b>; give another"
    change_state(job, lambda old: old.model_copy(update=facts))
    return job.id


@pytest.mark.parametrize("phase", PHASES)
def test_a_job_in_every_state(phase: Phase) -> None:
    name = job_in(phase)
    test = opened("jobs", run=name)
    [row] = test.dataframe[0].value.to_dict("records")
    assert (row["state"], row["id"]) == (phase, name)
    labels = {button.label for button in test.button}
    assert ("Cancel" in labels) == (phase in {"queued", "running"})
    assert ("Kill" in labels) == (phase == "cancelling")
    assert ("Go on" in labels) == (phase in {"cancelled", "failed", "lost"})
    if phase == "failed":
        assert plain("no model <b>x</b>; give another") in [error.value for error in test.error]


def test_the_jobs_of_a_state_alone_are_shown_and_the_link_keeps_it() -> None:
    names = {phase: job_in(phase, model=f"model-{phase}") for phase in PHASES}
    for shown, wanted in (
        ("all", set(PHASES)),
        ("unfinished", {"queued", "running", "cancelling", "lost"}),
        ("stopped", {"cancelled", "failed", "lost"}),
        ("done", {"done"}),
    ):
        table = opened("jobs", state=shown).dataframe[0].value
        assert set(table["id"]) == {names[phase] for phase in wanted}


def test_a_log_is_shown_as_text() -> None:
    name = job_in("failed")
    job = create("align", AlignRequest(model="a-model"))
    assert job.id != name  # a failed one is not taken again
    drawn = "pairs 0%\rpairs 50%\rpairs 100%\r\n"
    job.file("log.txt").write_bytes(f"{drawn}Traceback {EVIL}".encode())
    test = opened("jobs", run=job.id)
    assert f"pairs 100%\nTraceback {EVIL}" in [box.value for box in test.code]
    assert "No worker runs" in texts(test)
    submit(test, "Cancel")
    submit(opened("jobs", run=job.id), "Go on")
    assert state_of(job).state == "queued"


def test_progress_has_its_time_left() -> None:
    job = create("identify", IdentifyRequest(model="a-model"))
    alive = {"state": "running", "host": here(), "pid": os.getpid()}
    alive["started"] = started(os.getpid())
    change_state(job, lambda old: old.model_copy(update=alive))
    for done, clock in ((0, 0.0), (5, 10.0)):
        stage = {"kind": "stage", "stage": "prompts", "done": done, "total": 20, "clock": clock}
        append_event(job, stage)
    [row] = opened("jobs").dataframe[0].value.to_dict("records")
    assert (row["progress"], row["stage"]) == (0.25, "prompts: 5 of 20, about 30 s left")


def test_a_failed_job_has_no_bar_that_looks_like_success() -> None:
    job = create("align", AlignRequest(model="a-model"))
    stage = {"kind": "stage", "stage": "loading the model", "done": 1, "total": 1, "clock": 0.0}
    append_event(job, stage)
    failed = {"state": "failed", "error": "no such file"}
    change_state(job, lambda old: old.model_copy(update=failed))
    [row] = opened("jobs").dataframe[0].value.to_dict("records")
    assert pd.isna(row["progress"])
    assert row["stage"].startswith("loading the model: 1 of 1")


def test_a_job_that_cannot_be_read_is_named() -> None:
    name = job_in("done")
    other = create("identify", IdentifyRequest(model="a-model"))
    other.file("job.json").write_text("{<b>", "utf-8")
    shown = texts(opened("jobs", run=name))
    assert "passed over" in shown
    assert "<b>" not in shown


def test_a_job_of_every_verb_opens_on_its_page() -> None:
    study, _ = fill()
    neuron = measuring_request(study, 1, 5)
    for verb, kind in REQUESTS.items():
        given = {"model": "a-model", "layer": 1, "neuron": 5}
        asked = {name: value for name, value in given.items() if name in kind.model_fields}
        job = create(verb, neuron if verb == "neuron" else parse_request(kind, asked))
        [link] = opened("jobs", run=job.id).get("page_link")
        if verb == "neuron":
            place = {"study": [study.key], "layer": ["1"], "neuron": ["5"]}
            assert parse_qs(link.proto.query_string) == {"run": [job.id], **place}


def test_settings_say_what_there_is(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill()
    monkeypatch.setenv("SAFENEURON_QUEUE", "redis://user:hunter2@example.org:6379/0")
    monkeypatch.setenv("SAFENEURON_LAUNCHER", "srun <b>--gpus 1")
    test = opened("settings")
    shown = [frame.value for frame in test.dataframe]
    source = plain("the environment (SAFENEURON_QUEUE)")
    assert f"**queue** {plain('redis://example.org:6379/0')} ({source})" in texts(test)
    assert f"**launcher** {plain('srun <b>--gpus 1')} (" in texts(test)
    assert "hunter2" not in str(shown) + texts(test)
    [kept] = [table for table in shown if "folder" in table]
    assert kept.set_index("folder").loc["store", "files"] >= 5
    assert str(own_home) in [box.value for box in test.code]
    [versions] = [table for table in shown if "package" in table]
    assert {"torch", "streamlit", "python"} <= set(versions["package"])
    assert not [button for button in test.button if button.label != "Sign out"]


def test_a_setting_that_is_no_good_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFENEURON_LAUNCHES", "<script>")
    assert "setting launches" in texts(opened("settings")).replace("\\", "")


def test_the_command_line_says_the_same() -> None:
    fill()
    command = [sys.executable, "-c", "from app.cli import main; main()", "settings", "about"]
    told = json.loads(
        subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout
    )
    assert {place["name"] for place in told["places"]} >= {"store", "runs", "other"}
    assert next(p for p in told["places"] if p["name"] == "store")["size"] > 0
    assert told["devices"]
    assert told["versions"]["torch"][0].isdigit()
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "versions" in shown
