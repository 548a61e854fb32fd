"""Every page on an empty store, a full one and failed jobs, without a browser."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import app.dashboard
from analysis.costs import Sums, costs_of
from analysis.requests import AlignRequest, AttackRequest, IdentifyRequest
from analysis.robustness import Answer, AttackResult, Generation, MaskInfo, Setting
from analysis.scores.table import score_table
from analysis.select import Selection, select_parts
from analysis.store import Entry, Store
from app.dashboard.components.text import plain
from app.jobs.events import append_event
from app.jobs.folder import change_state, create, list_jobs, read_job, state_of
from app.jobs.progress import how_far, training_steps
from toolkit.capture.moments import Moments
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, ModelInfo, PromptsInfo

MAIN = str(Path(app.dashboard.__file__).parent / "main.py")
VIEWERS = ("home", "safety_map", "neuron", "overlap", "masks")
PAGES = {name: f"pages/{name}.py" for name in (*VIEWERS, "attack", "align", "runs")}
WIDTHS = [40, 40, 20]
EVIL = "<img src=x onerror=alert(1)> [a](http://b) :red[c]"


def fill(evil: bool = False) -> tuple[Entry, Entry]:
    """A study of random moments and an attack with its mask, through the real store."""
    rng = np.random.default_rng(0)
    sides = [
        [Moments(9, rng.normal(size=w), rng.uniform(1, 2, size=w)) for w in WIDTHS]
        for _ in range(2)
    ]
    table = score_table(*sides)
    name = EVIL if evil else "a-model"
    model = ModelInfo(
        source=name,
        fingerprint="a" * 64,
        architecture="llama",
        layers=len(WIDTHS),
        neurons_per_layer=WIDTHS,
    )
    prompts = PromptsInfo(name="some", sha256="b" * 64, count=2)
    selection = Selection("es+sas", 1.0, 1.5)
    parts = select_parts(table, WIDTHS, selection)
    mask = MaskFile.of(
        parts["es"] | parts["sas"],
        model,
        MethodInfo(name="es+sas", parameters={**selection.parameters(), "position": "last"}),
        MaskPrompts(harmful=prompts, harmless=prompts),
        parts,
    )

    def write_study(folder: Path) -> None:
        table.to_parquet(folder / "scores.parquet", index=False)
        mask.write(folder / "mask.json")

    facts = {"model": name, "fingerprint": model.fingerprint, "architecture": "llama"}
    facts |= {"widths": WIDTHS, "count": mask.count, "fraction": mask.fraction}
    facts |= {"method": "es+sas", "position": "last", "parameters": selection.parameters()}
    facts |= {"harmful": "some", "harmless": "some"}
    study = Store().save("identify", {"of": name}, "a study", facts, write_study)
    settings = [Setting(name="ORI", neurons=0), Setting(name="FULL", neurons=mask.count)]
    answers = [
        Answer(
            setting=setting.name,
            side=side,
            index=index,
            verdict="complied" if setting.name == "FULL" and index else "refused",
            why="opening",
            response=EVIL,
        )
        for setting in settings
        for side in ("harmful", "harmless", "over-refusal")
        for index in range(2)
    ]
    sums = [[Sums(4, kl, 2.0), Sums(4, 2 * kl, 3.0)] for kl in (0.0, 1.0)]
    result = AttackResult(
        model=model,
        mask=MaskInfo(
            sha256=mask.sha256,
            count=mask.count,
            fraction=mask.fraction,
            method=mask.method,
            fingerprint=model.fingerprint,
        ),
        settings=settings,
        prompts={"harmful": prompts, "harmless": prompts, "over-refusal": prompts},
        generation=Generation(max_new_tokens=4, dtype="float32", batch_size=2),
        judge="refusal/1",
        answers=answers,
        seconds=1.0,
        costs=costs_of(settings, sums),
    )

    def write_attack(folder: Path) -> None:
        text = result.model_dump_json(by_alias=True)
        (folder / "attack.json").write_text(text, "utf-8")

    summary = {"model": name, "fingerprint": model.fingerprint, "mask": mask.sha256}
    summary |= {"count": mask.count, "fraction": mask.fraction, "success": {"FULL": 0.5}}
    attack = Store().save("attack", {"of": name}, "an attack", summary, write_attack)
    return study, attack


def opened(page: str, **query: str) -> AppTest:
    test = AppTest.from_file(MAIN, default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    test.run()
    if page != "home":
        test.switch_page(PAGES[page])
        for name, value in query.items():
            test.query_params[name] = value
        test.run()
    assert not test.exception, test.exception
    return test


def texts(test: AppTest) -> str:
    shown = [*test.markdown, *test.caption, *test.info, *test.error, *test.warning]
    return "\n".join(str(element.value) for element in shown)


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_store_says_what_to_do(page: str) -> None:
    assert "safeneuron demo" in texts(opened(page))


def test_responses_stay_hidden_until_asked_for() -> None:
    fill()
    test = opened("attack")
    assert not test.code
    toggle = next(t for t in test.toggle if "responses" in t.label and "Show" in t.label)
    toggle.set_value(True).run()
    assert [box.value for box in test.code] == [EVIL] * 2


def test_costs_and_over_refusal_are_shown() -> None:
    fill()
    test = opened("attack")
    tables = [frame.value for frame in test.dataframe]
    (every,) = [table for table in tables if "prompts" in table and "removed" in table]
    assert set(every["prompts"]) == {"harmful", "harmless", "over-refusal"}
    (costs,) = [table for table in tables if "perplexity" in table]
    assert costs["KL, nats a token"].tolist() == ["0 [0, 0]", "0.375 [0.25, 0.5]"]


def test_data_is_never_markup() -> None:
    fill(evil=True)
    for page in PAGES:
        test = opened(page)
        assert not re.search(r"(?<!\\)[<\[:](img|a\]|red)", texts(test))
        assert not any(getattr(element, "allow_html", False) for element in test.markdown)


def test_plain_text_has_no_live_markup() -> None:
    assert plain("a*b*\n<i>") == r"a\*b\* \<i\>"


def submit(test: AppTest, label: str) -> None:
    next(button for button in test.button if button.label == label).click().run()
    assert not test.exception


def test_the_align_form_makes_one_job() -> None:
    study, _ = fill()
    test = opened("align")
    next(n for n in test.number_input if n.label == "Steps").set_value(4)
    submit(test, "Align")
    [job] = list_jobs()
    assert (job.verb, job.request["model"], job.request["steps"]) == ("align", "a-model", 4)
    assert job.request["mask"] == str(study.file("mask.json"))
    assert test.query_params["run"] in (job.id, [job.id])
    submit(test, "Cancel")
    assert state_of(job).state == "cancelled"
    submit(test, "Go on")
    assert state_of(job).state == "queued"


def test_identify_and_attack_forms_make_jobs() -> None:
    fill()
    submit(opened("safety_map"), "Identify")
    submit(opened("attack"), "Attack")
    made = {job.verb: job.request for job in list_jobs()}
    IdentifyRequest.model_validate(made["identify"])
    AttackRequest.model_validate_json(json.dumps(made["attack"]))


@pytest.mark.parametrize("page", ["align", "runs"])
def test_a_failed_job_says_why(page: str) -> None:
    job = create("align", AlignRequest(model="a-model"))
    failed = {"state": "failed", "error": "no model <b>x</b>; give another"}
    change_state(job, lambda old: old.model_copy(update=failed))
    append_event(job, {"kind": "train", "step": 1, "total": 4, "loss": 0.7, "margin": 0.0})
    test = opened(page, run=job.id)
    assert [error.value for error in test.error] == [plain("no model <b>x</b>; give another")]


def test_an_address_with_no_such_job_is_answered() -> None:
    for page in ("safety_map", "attack", "align"):
        test = opened(page, run="../../etc/passwd")
        assert "no job id" in test.error[0].value.replace("\\", "")


def test_progress_is_paced_by_the_running_process() -> None:
    events = [
        {"kind": "start", "time": 0.0},
        {"kind": "train", "step": 1, "total": 10, "loss": 1.0, "time": 10.0},
        {"kind": "train", "step": 2, "total": 10, "loss": 0.9, "time": 12.0},
        {"kind": "start", "time": 1000.0},
        {"kind": "train", "step": 2, "total": 10, "loss": 0.8, "time": 1010.0},
        {"kind": "train", "step": 4, "total": 10, "loss": 0.7, "time": 1016.0},
    ]
    far = how_far(events)
    assert far is not None
    assert (far.stage, far.done, far.total, far.left) == ("train", 4, 10, pytest.approx(18.0))
    assert training_steps(events)["loss"].tolist() == [1.0, 0.8, 0.7]
    assert how_far([{"kind": "start", "time": 0.0}]) is None


def test_no_page_loads_torch(own_home: Path) -> None:
    fill()
    job = create("align", AlignRequest(model="a-model"))
    assert read_job(job.id).id == job.id
    code = (
        "import sys\nfrom streamlit.testing.v1 import AppTest\n"
        f"test = AppTest.from_file({MAIN!r}, default_timeout=60).run()\n"
        f"for page in {list(PAGES.values())!r}:\n"
        "    test.switch_page(page).run()\n"
        "    assert not test.exception, test.exception\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
