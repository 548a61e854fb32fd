"""The Attack page: empty, running, full and failed; what is compared, hidden and taken away."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.comparison import summary
from analysis.requests import AttackRequest
from app.dashboard.components.text import plain
from app.dashboard.kin import split_masks
from app.jobs.events import append_event
from app.jobs.folder import change_state, create, list_jobs, state_of
from tests.app.test_pages import (
    EVIL,
    attack_result,
    fill,
    opened,
    save_attack,
    save_study,
    submit,
    texts,
)
from toolkit.models.sources import CARD


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
    assert costs["KL, nats a token"].tolist()[:2] == ["0 [0, 0]", "0.375 [0.25, 0.5]"]
    assert costs["setting"].tolist()[2:] == ["RANDOM (mean of 2)"]


def test_two_results_are_tested_against_random_and_each_other() -> None:
    _, first = fill()
    second = save_attack(attack_result(lucky=True), "another")
    test = opened("attack", attacks=f"{first.key},{second.key}")
    table = next(t.value for t in test.dataframe if "p against first" in t.value)
    names = list(table["result"].unique())
    assert len(names) == 2
    # Of one model, they are told apart by date, and of one minute by key.
    assert all(name.startswith(f"a-model, {first.created:%Y-%m-%d}") for name in names)
    assert "p against random" in table
    assert "[" in table["complied"].iloc[0]
    # The other side's answers are a click away, and the address keeps which.
    again = opened("attack", attacks=first.key, side="over-refusal")
    assert again.query_params["side"] in ("over-refusal", ["over-refusal"])


def test_models_in_folders_of_one_name_are_told_apart() -> None:
    folders = ("/home/me/one/tiny", "/home/me/two/tiny", "/home/me/other")
    entries = [save_attack(attack_result(folder), folder) for folder in folders]
    test = opened("attack", attacks=",".join(entry.key for entry in entries))
    table = next(t.value for t in test.dataframe if "p against first" in t.value)
    assert list(table["result"].unique()) == ["one/tiny", "two/tiny", "other"]


@pytest.mark.parametrize("page", ["attack", "align"])
def test_a_mask_does_not_follow_to_another_model(page: str) -> None:
    one, two = save_study("one"), save_study("two", seed=5, fingerprint="c" * 64)
    masks = [str(study.file("mask.json")) for study in (one, two)]
    test = opened(page, model="one", mask=masks[0])

    def field(label: str) -> Any:
        return next(box for box in test.selectbox if box.label.startswith(label))

    assert field("Mask").value == masks[0]
    field("Model").set_value("two").run()
    assert field("Mask").value == masks[1]
    assert not test.warning
    # Another model's may be chosen: the page says what the job would.
    field("Mask").set_value(masks[0]).run()
    assert "made for another model than two" in texts(test)
    next(t for t in test.toggle if "another model" in t.label).set_value(True).run()
    assert not test.warning
    submit(test, page.capitalize())
    [job] = list_jobs()
    assert (job.request["model"], job.request["mask"]) == ("two", masks[0])
    assert job.request["force"]


def test_a_model_without_a_mask_is_not_given_anothers() -> None:
    save_study("one")
    test = opened("attack", model="smollm2-135m-aligned")
    assert next(box for box in test.selectbox if box.label == "Mask").value == "first"


def test_masks_of_what_a_model_was_trained_from_are_its_own(own_home: Path) -> None:
    study = save_study("one")
    child = own_home / "child"
    child.mkdir(parents=True)
    (child / "config.json").write_text("{}", "utf-8")
    assert [choice.value for choice in split_masks(str(child))[0]] == []
    (child / CARD).write_text(json.dumps({"ancestors": ["a" * 64]}), "utf-8")
    own, others = split_masks(str(child))
    assert [choice.value for choice in own] == [str(study.file("mask.json"))]
    assert not others


def test_what_is_taken_away_has_no_responses() -> None:
    fill()
    test = opened("attack")
    offered = {button.label: button for button in test.get("download_button")}
    assert {"attacks.csv", "attacks.json", "attacks.md"} <= set(offered)
    told = json.dumps(summary(attack_result()), default=str)
    assert EVIL not in told
    assert json.loads(told)["table"][0]["setting"] == "ORI"


def test_the_form_asks_for_all_that_the_command_does() -> None:
    fill()
    test = opened("attack")
    next(s for s in test.multiselect if s.label == "Settings").set_value(["ORI", "SWEEP", "HOLD"])
    next(t for t in test.text_input if t.label == "SWEEP: shares").set_value("0.01, 0.2")
    next(t for t in test.text_input if t.label == "HOLD: constants").set_value("-1.5")
    next(n for n in test.number_input if n.label == "Random seeds").set_value(3)
    next(t for t in test.toggle if t.label == "Measure what each setting costs").set_value(True)
    next(s for s in test.selectbox if s.label == "Mask").set_value("first")
    submit(test, "Attack")
    assert "at the top" in test.toast[0].value
    [job] = list_jobs()
    asked = AttackRequest.model_validate(job.request)
    assert asked.settings == ("ORI", "SWEEP", "HOLD")
    assert (asked.sweep_shares, asked.hold_at) == ((0.01, 0.2), (-1.5,))
    assert (asked.mask, asked.seeds, asked.costs) == (None, 3, True)
    # Every field of the request has a widget, or is the form's own.
    assert set(job.request) == set(AttackRequest.model_fields)


@pytest.mark.parametrize("text", ["x", "2", "0.1; 0.2", "<b>"])
def test_shares_that_are_none_are_refused_in_one_line(text: str) -> None:
    fill()
    test = opened("attack")
    next(t for t in test.text_input if t.label == "SWEEP: shares").set_value(text)
    submit(test, "Attack")
    assert "sweep-shares" in test.error[0].value.replace("\\", "")
    assert not list_jobs()


def test_a_running_attack_shows_its_time_left() -> None:
    study, _ = fill()
    job = create("attack", AttackRequest(model="a-model", mask=study.file("mask.json")))
    for done, clock in ((0, 0.0), (10, 20.0)):
        stage = {"kind": "stage", "stage": "answers", "done": done, "total": 40, "clock": clock}
        append_event(job, stage)
    test = opened("attack")  # without being asked for: it is the newest that is not over
    assert "answers" in str(test.get("progress")[0].proto.text)
    assert "60 s left" in str(test.get("progress")[0].proto.text)
    submit(test, "Cancel")
    assert state_of(job).state == "cancelled"


def test_a_failed_attack_says_why() -> None:
    job = create("attack", AttackRequest(model="a-model"))
    failed = {"state": "failed", "error": "no model <b>x</b>; give another"}
    change_state(job, lambda old: old.model_copy(update=failed))
    test = opened("attack", run=job.id)
    assert [error.value for error in test.error] == [plain("no model <b>x</b>; give another")]
