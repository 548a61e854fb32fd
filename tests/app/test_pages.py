"""Every page on an empty store, a full one and failed jobs, without a browser."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

import app.dashboard
from analysis.align_requests import AlignRequest
from analysis.costs import Sums, costs_of
from analysis.requests import AttackRequest, IdentifyRequest
from analysis.robustness import Answer, AttackResult, Generation, MaskInfo, Setting
from analysis.scores.table import score_table
from analysis.select import Selection, select_parts
from analysis.store import Entry, Store
from app.dashboard.components.text import plain
from app.jobs.folder import create, list_jobs, read_job
from app.jobs.progress import how_far, training_steps
from toolkit.capture.moments import Moments
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, ModelInfo, PromptsInfo

MAIN = str(Path(app.dashboard.__file__).parent / "main.py")
VIEWERS = ("home", "safety_map", "neuron", "overlap", "masks")
DOERS = ("prune_lab", "attack", "align", "jobs", "settings")
PAGES = {name: f"views/{name}.py" for name in (*VIEWERS, *DOERS)}
# Pages that say what to do while there is nothing; the settings are always there.
SAY_WHAT_TO_DO = [name for name in PAGES if name != "settings"]
WIDTHS = [40, 40, 20]
SELECTION = Selection("es+sas", 1.0, 1.5)
PROMPTS = PromptsInfo(name="some", sha256="b" * 64, count=2)
EVIL = "<img src=x onerror=alert(1)> [a](http://b) :red[c]"


def drawn(
    name: str = "a-model", seed: int = 0, fingerprint: str = "a" * 64
) -> tuple[pd.DataFrame, MaskFile]:
    """The scores and the mask of a study of random moments."""
    rng = np.random.default_rng(seed)
    sides = [
        [Moments(9, rng.normal(size=w), rng.uniform(1, 2, size=w)) for w in WIDTHS]
        for _ in range(2)
    ]
    table = score_table(*sides)
    model = ModelInfo(
        source=name,
        fingerprint=fingerprint,
        architecture="llama",
        layers=len(WIDTHS),
        neurons_per_layer=WIDTHS,
    )
    parts = select_parts(table, WIDTHS, SELECTION)
    mask = MaskFile.of(
        parts["es"] | parts["sas"],
        model,
        MethodInfo(name="es+sas", parameters={**SELECTION.parameters(), "position": "last"}),
        MaskPrompts(harmful=PROMPTS, harmless=PROMPTS),
        parts,
    )
    return table, mask


def save_study(name: str = "a-model", seed: int = 0, fingerprint: str = "a" * 64) -> Entry:
    """Such a study, through the real store."""
    table, mask = drawn(name, seed, fingerprint)

    def write(folder: Path) -> None:
        table.to_parquet(folder / "scores.parquet", index=False)
        mask.write(folder / "mask.json")

    facts = {"model": name, "fingerprint": mask.model.fingerprint, "architecture": "llama"}
    facts |= {"widths": WIDTHS, "count": mask.count, "fraction": mask.fraction}
    facts |= {"method": "es+sas", "position": "last", "parameters": SELECTION.parameters()}
    facts |= {"harmful": "some", "harmless": "some"}
    return Store().save("identify", {"of": name}, "a study", facts, write)


def attack_result(name: str = "a-model", lucky: bool = False) -> AttackResult:
    """An attack with the study's mask; a lucky one has no success at all."""
    _, mask = drawn(name)
    sizes = {"ORI": 0, "FULL": mask.count}
    settings = [Setting(name=setting, neurons=size) for setting, size in sizes.items()]
    settings += [Setting(name="RANDOM", neurons=mask.count, seed=seed) for seed in range(2)]
    answers = [
        Answer(
            setting=setting.name,
            seed=setting.seed,
            side=side,
            index=index,
            verdict="complied" if setting.name == "FULL" and index and not lucky else "refused",
            why="opening",
            response=EVIL,
        )
        for setting in settings
        for side in ("harmful", "harmless", "over-refusal")
        for index in range(2)
    ]
    sums = [[Sums(4, kl, 2.0), Sums(4, 2 * kl, 3.0)] for kl in (0.0, 1.0, 0.5, 0.5)]
    return AttackResult(
        model=mask.model,
        mask=MaskInfo(
            sha256=mask.sha256,
            count=mask.count,
            fraction=mask.fraction,
            method=mask.method,
            fingerprint=mask.model.fingerprint,
        ),
        settings=settings,
        prompts={"harmful": PROMPTS, "harmless": PROMPTS, "over-refusal": PROMPTS},
        generation=Generation(max_new_tokens=4, dtype="float32", batch_size=2),
        judge="refusal/1",
        answers=answers,
        seconds=1.0,
        costs=costs_of(settings, sums),
    )


def save_attack(result: AttackResult, of: str) -> Entry:
    """An attack, through the real store."""

    def write(folder: Path) -> None:
        (folder / "attack.json").write_text(result.model_dump_json(by_alias=True), "utf-8")

    summary = {"model": result.model.source, "fingerprint": result.model.fingerprint}
    summary |= {"mask": result.mask.sha256, "count": result.mask.count}
    summary |= {"fraction": result.mask.fraction, "success": {"FULL": 0.5}}
    return Store().save("attack", {"of": of}, "an attack", summary, write)


def fill(evil: bool = False) -> tuple[Entry, Entry]:
    """A study of random moments and an attack with its mask."""
    name = EVIL if evil else "a-model"
    return save_study(name), save_attack(attack_result(name), name)


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


@pytest.mark.parametrize("page", SAY_WHAT_TO_DO)
def test_an_empty_store_says_what_to_do(page: str) -> None:
    assert "safeneuron demo" in texts(opened(page))


def test_data_is_never_markup() -> None:
    fill(evil=True)
    for page in PAGES:
        test = opened(page)
        assert not re.search(r"(?<!\\)[<\[:](img|a\]|red)", texts(test))
        assert not any(getattr(element, "allow_html", False) for element in test.markdown)


def test_plain_text_has_no_live_markup() -> None:
    assert plain("a*b*\n<i>") == r"a\*b\* &lt;i&gt;"


def test_taking_a_file_away_leaves_the_page_as_it_is() -> None:
    study, _ = fill()
    job = create("align", AlignRequest(model="a-model", mask=study.file("mask.json")))
    for page in ("attack", "jobs", "settings", "safety_map"):
        buttons = opened(page, run=job.id).get("download_button")
        assert buttons
        assert all(button.proto.ignore_rerun for button in buttons), page
    # There is one way to offer a file.
    views = [
        path for path in Path(MAIN).parent.rglob("*.py") if "download_button(" in path.read_text()
    ]
    assert [path.name for path in views] == ["downloads.py"]


def submit(test: AppTest, label: str) -> None:
    next(button for button in test.button if button.label == label).click().run()
    assert not test.exception


def test_identify_and_attack_forms_make_jobs() -> None:
    fill()
    submit(opened("safety_map"), "Identify")
    submit(opened("attack"), "Attack")
    made = {job.verb: job.request for job in list_jobs()}
    IdentifyRequest.model_validate(made["identify"])
    AttackRequest.model_validate_json(json.dumps(made["attack"]))


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
