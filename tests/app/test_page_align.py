"""The Align page: empty, running, done and failed; the form, its estimate, before and after."""

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Expander

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.store import Store
from app.dashboard.components.text import plain
from app.jobs.events import append_event
from app.jobs.folder import Job, change_state, create, list_jobs, state_of
from tests.app.test_pages import attack_result, fill, opened, save_study, submit, texts
from tests.tiny import save_tiny
from toolkit.train.recipes import RECIPES


def made(study_mask: Path, **fields: object) -> Job:
    """An alignment that is done, as far as its folder says."""
    request = AlignRequest.model_validate({"model": "a-model", "mask": study_mask, **fields})
    job = create("align", request)
    change_state(job, lambda old: old.model_copy(update={"state": "done"}))
    job.file("result.json").write_text(f'{{"steps": 3, "model": "{job.folder}"}}', "utf-8")
    return job


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


def test_the_form_is_open_for_a_mask_that_one_brings() -> None:
    study, _ = fill()
    job = made(study.file("mask.json"))

    def form(test: AppTest) -> Expander:
        return next(box for box in test.expander if box.label == "Start an alignment")

    assert not form(opened("align", run=job.id)).proto.expanded
    test = opened("align", mask=str(study.file("mask.json")), model="a-model")
    assert form(test).proto.expanded
    next(n for n in test.number_input if n.label == "Rounds").set_value(2).run()
    assert form(test).proto.expanded
    submit(test, "Align")
    assert not form(test).proto.expanded
    assert "at the top" in test.toast[0].value


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_started(recipe: str) -> None:
    fill()
    test = opened("align", recipe=recipe, preset="paper")
    assert test.selectbox(key="align-recipe").value == recipe
    submit(test, "Align")
    [job] = list_jobs()
    assert (job.request["recipe"], job.request["preset"]) == (recipe, "paper")
    assert (job.request["mask"] is not None) == RECIPES[recipe].needs_mask  # type: ignore[index]


def test_what_is_missing_is_said_and_is_no_error() -> None:
    test = opened("align")  # no study, so no mask, and nothing was done yet
    assert "This recipe needs a mask" in texts(test)
    assert not test.error
    assert next(button for button in test.button if button.label == "Align").disabled


def test_held_out_sets_and_the_attack_afterwards_can_be_chosen() -> None:
    fill()
    test = opened("align")
    labels = {field.label for field in (*test.text_input, *test.number_input)}
    assert not {"Pairs held out", "Harmful prompts attacked"} & labels
    next(n for n in test.number_input if n.label.endswith("held-out looks")).set_value(4)
    next(t for t in test.toggle if t.label.startswith("Attack it")).set_value(True).run()
    for label, value in (
        ("Harmful prompts held out", "advbench[:3]"),
        ("Harmless prompts held out", "harmless-train[:3]"),
        ("Harmful prompts attacked", "strongreject[:5]"),
        ("Harmless prompts attacked", "harmless-heldout[:5]"),
    ):
        next(t for t in test.text_input if t.label == label).set_value(value)
    for label, number in (
        ("Pairs held out", 3),
        ("Tokens of an attacked answer", 9),
        ("Passes over the pairs", 0.5),
        ("Gradient norm", 0.3),
        ("LoRA rank", 4),
        ("LoRA alpha", 8),
    ):
        next(n for n in test.number_input if n.label == label).set_value(number)
    test.run()
    submit(test, "Align")
    [job] = list_jobs()
    asked = AlignRequest.model_validate(job.request)
    assert (asked.held_out, asked.held_harmful) == (3, "advbench[:3]")
    assert asked.held_harmless == "harmless-train[:3]"
    assert (asked.attacked, asked.attacked_harmless) == ("strongreject[:5]", "harmless-heldout[:5]")
    assert (asked.attack_tokens, asked.epochs, asked.max_grad_norm) == (9, 0.5, 0.3)
    assert (asked.lora_rank, asked.lora_alpha) == (4, 8)


def test_rounds_are_started_and_their_table_is_shown() -> None:
    fill()
    test = opened("align")
    next(n for n in test.number_input if n.label == "Rounds").set_value(2).run()
    submit(test, "Align")
    [job] = list_jobs()
    assert job.verb == "rounds"
    assert RoundsRequest.model_validate(job.request).rounds == 2
    done = {"number": 1, "model": str(job.folder / "T1"), "found": 7, "new": 7, "frozen": 7}
    record = {"request_key": "x", "rounds": [done | {"steps": 3, "seconds": 1.0}]}
    job.file("rounds.json").write_text(json.dumps(record), "utf-8")
    table = opened("align", run=job.id).dataframe[0].value
    assert table["model"].tolist() == ["T0", "T1"]
    job.file("rounds.json").write_text('{"request_key": 1, "rounds": [{"a": 1}]}', "utf-8")
    assert "was edited" in texts(opened("align", run=job.id))


def test_pairs_come_from_a_file_or_from_sets(own_home: Path) -> None:
    fill()
    test = opened("align", data="file")
    assert "Name the file of pairs" in texts(test)
    pairs = own_home / "pairs.jsonl"
    next(t for t in test.text_input if t.label == "File of pairs").set_value(str(pairs)).run()
    submit(test, "Align")
    test = opened("align", data="sets")
    next(t for t in test.text_input if t.label == "General pairs").set_value("ultrafeedback").run()
    submit(test, "Align")
    asked = {job.request["pairs"]: job.request for job in list_jobs()}
    assert set(asked) == {str(pairs), None}
    assert (asked[None]["safety"], asked[None]["general"]) == ("pku-saferlhf", "ultrafeedback")


def test_what_it_takes_is_told_before_it_starts(own_home: Path) -> None:
    folder = save_tiny(own_home / "models" / "mine")
    save_study(str(folder))
    test = opened("align")
    told = {metric.label: metric.value for metric in test.metric}
    assert {"Training, at most", "Memory", "Steps"} <= set(told)
    assert told["Steps"] == "72 × 8 pairs"
    test.number_input(key="align-steps").set_value(144).run()
    assert {m.label: m.value for m in test.metric}["Steps"] == "144 × 8 pairs"
    # Of a model that is not here nothing is known, and no path outside is looked at.
    fill()
    assert "not on this machine yet" in texts(opened("align", model="a-model")).replace("\\", "")
    test = opened("align", model="/etc", mask="none", recipe="dpo")
    assert "outside what pages may read" in texts(test).replace("\\", "")


def test_a_running_alignment_has_curves_and_can_be_stopped() -> None:
    study, _ = fill()
    job = create("align", AlignRequest(model="a-model", mask=study.file("mask.json")))
    for step in (1, 2, 3):
        event = {"kind": "train", "step": step, "total": 9, "loss": 1 / step, "margin": 0.1 * step}
        append_event(job, event | {"accuracy": 0.5, "chosen": 0.0, "rejected": -0.1})
    look = {"kind": "held-out", "step": 3, "margin": 0.2, "kl": 0.01, "harmful": 4, "harmless": 4}
    append_event(job, look | {"refused_harmful": 3, "refused_harmless": 1})
    test = opened("align", run=job.id)
    assert len(test.get("plotly_chart")) == 6
    assert "train: 3 of 9" in str(test.get("progress")[0].proto.text).replace("\\", "")
    submit(test, "Cancel")
    assert state_of(job).state == "cancelled"
    submit(opened("align", run=job.id), "Go on")
    assert state_of(job).state == "queued"


def after(job: Job) -> AppTest:
    return opened("align", run=job.id)


def test_before_and_after_are_shown_from_the_runs_own_attacks() -> None:
    study, _ = fill()
    job = made(study.file("mask.json"))
    assert "Not attacked yet" in texts(after(job))
    for name, lucky in (("attack-before.json", False), ("attack-after.json", True)):
        text = attack_result(lucky=lucky).model_dump_json(by_alias=True)
        job.file(name).write_text(text, "utf-8")
    test = after(job)
    table = next(t.value for t in test.dataframe if "p against first" in t.value)
    assert set(table["result"]) == {"before", "after"}
    assert "has no study yet" in texts(test)
    submit(test, "Identify the model after")
    [found] = [made for made in list_jobs() if made.verb == "identify"]
    assert found.request["model"] == str(job.folder)


def test_maps_and_what_moved_between_two_studies() -> None:
    study, _ = fill()
    job = made(study.file("mask.json"))
    save_study(str(job.folder), seed=5)
    test = after(job)
    assert len(Store().entries("identify")) == 2
    metrics = {metric.label: metric.value for metric in test.metric}
    assert int(metrics["Joined"]) > 0
    assert int(metrics["Left"]) > 0
    summary = next(t.value for t in test.dataframe if "quantity" in t.value)
    assert summary.set_index("quantity").loc["safety neurons", "before"] == study.summary["count"]
    assert len(test.get("plotly_chart")) >= 3  # two maps, and the mass by layer


def test_a_result_that_names_another_folder_is_not_followed() -> None:
    study, _ = fill()
    job = made(study.file("mask.json"))
    job.file("result.json").write_text('{"model": "/etc"}', "utf-8")
    submit(after(job), "Identify the model after")
    [found] = [made for made in list_jobs() if made.verb == "identify"]
    assert found.request["model"] == str(job.folder)


def test_a_failed_alignment_says_why() -> None:
    job = create("align", AlignRequest(model="a-model"))
    failed = {"state": "failed", "error": "no model <b>x</b>; give another"}
    change_state(job, lambda old: old.model_copy(update=failed))
    append_event(job, {"kind": "train", "step": 1, "total": 4, "loss": 0.7, "margin": 0.0})
    errors = [error.value for error in opened("align", run=job.id).error]
    assert plain("no model <b>x</b>; give another") in errors
