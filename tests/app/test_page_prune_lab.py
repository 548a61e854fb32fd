"""The Prune lab's page: empty, waiting, answered, failed; links; what is veiled."""

from dataclasses import asdict

import pytest
from streamlit.testing.v1 import AppTest

from analysis.chat import Answered, Arm, ChatRequest, Question, Removal, Said
from analysis.store import Entry
from app.dashboard import lab
from app.dashboard.components.answers import VEIL, WORDS_ALONE, prose, veiled
from app.dashboard.components.text import plain
from app.jobs.chat import Desk
from app.jobs.events import append_event
from app.jobs.folder import Job, change_state, create, list_jobs, state_of
from app.jobs.process import here, started
from tests.app.test_pages import EVIL, fill, opened, texts

SAID: dict[Arm, Answered] = {
    "whole": Answered("I can't help with that.", 6, "refused", "I can't help"),
    "pruned": Answered(f"Sure: first\n{EVIL}", 9, "complied", "no refusal in its opening"),
    "random": Answered("I can't. Sorry.", 4, "refused", "I can't"),
}
ALL: dict[Arm, tuple[Said, ...]] = {"whole": (), "pruned": (), "random": ()}


def question(study: Entry, **more: object) -> Question:
    values = {"removal": Removal(study=study.key, share=0.05), "before": ALL, "prompt": EVIL}
    return Question.model_validate({**values, **more})


def conversation(study: Entry, answered: bool = True, **more: object) -> tuple[Job, str]:
    """A session that is running here, as far as its folder says."""
    import os

    job = create("chat", ChatRequest(model="a-model"))
    desk = Desk(job)
    number = desk.put(question(study, **more))
    assert number is not None
    alive = {"state": "running", "host": here(), "pid": os.getpid()}
    alive["started"] = started(os.getpid())
    change_state(job, lambda old: old.model_copy(update=alive))
    append_event(job, {"kind": "stage", "stage": "loading the model", "done": 1, "total": 1})
    desk.tell(number, kind="begin")
    if answered:
        for arm, told in SAID.items():
            desk.tell(number, kind="answer", arm=arm, **asdict(told))
        desk.tell(number, kind="end", phase="answered")
    return job, number


def at(job: Job, number: str, **query: str) -> AppTest:
    return opened("prune_lab", run=job.id, turn=number, **query)


def test_nothing_to_remove_says_what_to_do() -> None:
    assert "identify the neurons of a model" in texts(opened("prune_lab"))


def test_the_slider_says_how_many_go() -> None:
    study, _ = fill()
    test = opened("prune_lab", share="0.05", score="es")
    assert test.selectbox(key="lab-score").value == "es"
    assert "Removes 5 of 100 neurons" in texts(test)
    test.select_slider(key="lab-share").set_value(0.1).run()
    assert "Removes 10 of 100 neurons" in texts(test)
    assert test.query_params["share"] in ("0.1", ["0.1"])
    mask = str(study.file("mask.json"))
    assert mask not in test.selectbox(key="lab-what").options


def test_a_question_becomes_a_job_and_waits() -> None:
    study, _ = fill()
    test = opened("prune_lab", share="0.05")
    test.chat_input[0].set_value("  Is it <b>legal</b>? ").run()
    assert not test.exception
    [job] = list_jobs()
    assert (job.verb, job.request["model"], state_of(job).state) == ("chat", "a-model", "queued")
    asked = Desk(job).question("0001")
    assert asked.prompt == "Is it <b>legal</b>?"
    assert asked.removal == Removal(study=study.key, share=0.05)
    assert asked.arms == ("whole", "pruned", "random")
    assert "waits for a worker" in texts(test)
    assert plain("Is it <b>legal</b>?") in texts(test)
    # A second tab is led to the same session.
    other = at(job, "0001")
    other.chat_input[0].set_value("And this?").run()
    assert [made.id for made in list_jobs()] == [job.id]
    assert Desk(job).numbers() == ["0001", "0002"]


def test_words_are_shown_veiled_while_they_come() -> None:
    study, _ = fill()
    job, number = conversation(study, answered=False)
    Desk(job).tell(number, kind="text", arm="pruned", text="Sure: first")
    test = at(job, number)
    assert "Sure" not in texts(test)
    assert prose(veiled("Sure: first")) in texts(test)
    stop = next(button for button in test.button if button.label == "Stop")
    stop.click().run()
    assert Desk(job).unwanted(number)


def test_only_a_refusal_of_the_whole_model_is_open() -> None:
    study, _ = fill()
    job, number = conversation(study)
    test = at(job, number)
    shown = texts(test)
    assert prose(SAID["whole"].text) in shown
    assert "Sure" not in shown
    assert prose(SAID["random"].text) not in shown
    assert VEIL in shown
    test.toggle(key=f"lifted-{job.id}-{number}-pruned").set_value(True).run()
    assert prose(SAID["pruned"].text) in texts(test)
    assert prose(SAID["random"].text) not in texts(test)
    assert "<img" not in texts(test).replace(r"\<img", "")


def test_a_verdict_says_that_words_alone_are_judged() -> None:
    study, _ = fill()
    job, number = conversation(study)
    badges = [mark for mark in at(job, number).markdown if "-badge[" in mark.value]
    verdicts = [mark for mark in badges if "refused" in mark.value or "complied" in mark.value]
    assert len(verdicts) >= 2
    assert all(WORDS_ALONE in mark.proto.help for mark in verdicts)


def test_a_conversation_goes_on_and_its_link_restores_it() -> None:
    study, _ = fill()
    job, number = conversation(study)
    query = {"what": study.key, "share": "0.05", "score": "sas"}
    test = at(job, number, **query)
    test.chat_input[0].set_value("And then?").run()
    asked = Desk(job).question("0002")
    assert [said.text for said in asked.before["pruned"]] == [EVIL, SAID["pruned"].text]
    again = at(job, "0002", **query)
    assert prose(EVIL) in texts(again)
    assert prose("And then?") in texts(again)
    # With another share it would be another model's conversation: it begins anew.
    other = at(job, number, what=study.key, share="0.1")
    assert "begins anew" in texts(other)
    other.chat_input[0].set_value("Afresh?").run()
    assert Desk(job).question("0003").before == ALL


def test_the_jobs_page_leads_back_to_the_conversation() -> None:
    study, _ = fill()
    job, number = conversation(study)
    address = lab.address_of(job)
    assert (address["run"], address["turn"], address["what"]) == (job.id, number, study.key)
    test = opened("prune_lab", **address)
    assert prose(EVIL) in texts(test)
    assert "begins anew" not in texts(test)
    assert lab.address_of(create("chat", ChatRequest(model="another"))).keys() == {
        *("run", "model", "dtype")
    }


def test_another_random_set_is_a_click_away() -> None:
    study, _ = fill()
    job, number = conversation(study)
    test = at(job, number, what=study.key, share="0.05")
    next(button for button in test.button if button.label == "Draw another").click().run()
    assert not test.exception
    asked = Desk(job).question("0002")
    assert (asked.removal.seed, asked.prompt) == (1, EVIL)
    assert test.query_params["seed"] in ("1", ["1"])


@pytest.mark.parametrize("phase", ["failed", "lost", "cancelled"])
def test_a_session_that_ended_offers_to_go_on(phase: str) -> None:
    study, _ = fill()
    job, number = conversation(study, answered=False)
    ended = {
        "state": phase,
        "pid": None,
        "error": "no model <b>x</b>" if phase == "failed" else None,
    }
    change_state(job, lambda old: old.model_copy(update=ended))
    test = at(job, number)
    assert [error.value for error in test.error] == [plain("no model <b>x</b>")] * (
        phase == "failed"
    )
    next(button for button in test.button if button.label == "Go on").click().run()
    assert state_of(job).state == "queued"


def test_what_went_wrong_with_a_question_is_shown() -> None:
    study, _ = fill()
    job, number = conversation(study, answered=False)
    Desk(job).tell(number, kind="end", phase="failed", error="no study <i>x</i> here")
    assert plain("no study <i>x</i> here") in [error.value for error in at(job, number).error]


def test_an_address_with_no_such_conversation_is_answered() -> None:
    study, _ = fill()
    job, _ = conversation(study)
    for run, turn in (("../../etc", "0001"), (job.id, "../../x"), (job.id, "0099")):
        test = opened("prune_lab", run=run, turn=turn)
        assert test.error
    job.file("questions/0001.json").write_text('{"before": 3}', "utf-8")
    assert "was edited" in texts(at(job, "0001"))


def test_a_path_outside_is_refused() -> None:
    fill()
    test = opened("prune_lab", model="/etc")
    test.chat_input[0].set_value("Hi").run()
    assert "outside what pages may read" in texts(test).replace("\\", "")
    assert not list_jobs()


def test_a_veil_keeps_the_shape_and_no_letter() -> None:
    text = "Mix é, 2 cups\n\n\tand `x`"
    hidden = veiled(text)
    assert [len(line) for line in hidden.splitlines()] == [len(line) for line in text.splitlines()]
    assert set(hidden) == {VEIL, " ", "\n", "\t"}
