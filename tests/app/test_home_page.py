"""Home: headlines, what is running, and the button that starts a study."""

import pytest

from analysis.align_requests import AlignRequest
from app.jobs.events import append_event
from app.jobs.folder import change_state, create, list_jobs
from tests.app.test_pages import (
    attack_result,
    fill,
    opened,
    save_attack,
    save_study,
    submit,
    texts,
)
from toolkit.models.sources import EMBEDDED


def test_an_empty_home_starts_a_study() -> None:
    test = opened("home")
    assert not test.metric
    submit(test, "Start a study")
    [job] = list_jobs()
    assert (job.verb, job.request["top"]) == ("identify", 0.01)
    assert test.query_params["run"] in (job.id, [job.id])


@pytest.mark.parametrize("page", ["home", "attack"])
def test_the_model_that_refuses_is_offered_first_and_both_say_what_they_do(page: str) -> None:
    field = next(box for box in opened(page).selectbox if box.label == "Model")
    assert field.value == "smollm2-135m-aligned"
    assert field.options == [
        "smollm2-135m-aligned · refuses harmful requests",
        "smollm2-135m-instruct · complies with nearly every harmful request",
    ]
    assert all(model.description in field.help for model in EMBEDDED.values())


def test_the_headline_counts_and_says_what_an_attack_left() -> None:
    study, _ = fill()
    test = opened("home")
    metrics = {metric.label: (metric.value, metric.delta) for metric in test.metric}
    count, fraction = study.summary["count"], study.summary["fraction"]
    assert metrics["Safety neurons"] == (str(count), f"{fraction:.2%} of all")
    assert metrics["Densest layer"][0].endswith("of 3")
    assert "Not attacked" not in texts(test)


def test_a_study_that_nobody_attacked_says_so() -> None:
    study, attack = fill()
    for path in attack.path.iterdir():
        path.unlink()
    attack.path.rmdir()
    assert "Not attacked with these neurons yet" in texts(opened("home", study=study.key))


def test_an_attack_with_the_set_found_before_training_is_shown_as_such() -> None:
    save_study("after", seed=5, fingerprint="c" * 64)
    result = attack_result()  # with a mask of the model before
    trained = result.model.model_copy(update={"source": "after", "fingerprint": "c" * 64})
    save_attack(result.model_copy(update={"model": trained}), "after")
    shown = texts(opened("home"))
    assert "the set found before training" in shown
    assert "Not attacked" not in shown


def test_what_runs_and_what_failed_is_shown() -> None:
    job = create("align", AlignRequest(model="a-model"))
    append_event(job, {"kind": "train", "step": 1, "total": 4, "loss": 0.7})
    test = opened("home")
    assert "align of a\\-model" in texts(test)
    change_state(job, lambda old: old.model_copy(update={"state": "failed", "error": "no disk"}))
    test = opened("home", run=job.id)
    assert [error.value for error in test.error] == ["no disk"]
    assert "Nothing is running" in texts(test)


def test_a_damaged_mask_is_told_and_the_rest_is_drawn() -> None:
    study, _ = fill()
    study.file("mask.json").write_text("[")
    test = opened("home")
    assert "mask" in test.error[0].value
    assert len(test.dataframe) == 1
