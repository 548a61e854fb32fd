"""What is meant to do harm: masks, names, addresses, stores and requests made by hand."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from streamlit.testing.v1 import AppTest

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.chat import ChatRequest, Question, Removal
from analysis.manifest import sealed
from analysis.neuron import NeuronRequest
from analysis.requests import AttackRequest, IdentifyRequest, RedTeamRequest, Request
from analysis.store import MANIFEST
from app.dashboard.inside import JUDGES, MODELS, PAIRS, PROMPTS, is_inside, require_inside
from app.jobs.folder import create, list_jobs, read_folder
from app.jobs.run import run
from app.serve import FLAGS
from tests.app.test_pages import MAIN, PAGES, SAY_WHAT_TO_DO, fill, opened, texts
from toolkit.errors import SafeNeuronError
from toolkit.files import read_text
from toolkit.masks import LARGEST_MASK, parse_mask, read_mask
from toolkit.prompts import read_prompts
from toolkit.train.preferences import read_pairs

SCRIPT = "<script>alert(1)</script>"
DEEP = 100_000
EVIL_VALUES = (
    SCRIPT,
    "../../../../etc/passwd",
    "/etc/passwd",
    "..%2f..%2fetc",
    "nan",
    "1e999",
    "-1",
    "9" * 400,
    "\0",
    "{}",
    "",
)
PARAMETERS = ("study", "attacks", "run", "mask", "model", "method", "by", "tau_es", "top")
PARAMETERS += ("layer", "neuron", "color", "what", "score", "share", "seed", "random", "sample")
PARAMETERS += ("tokens", "dtype", "turn", "state", "side", "setting", "recipe", "preset", "data")
PARAMETERS += ("layer", "neuron", "color", "open", "box", "with", "as", "sets", "masks", "how")
PARAMETERS += ("first", "second")


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_a_mask_of_100_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mask.json"
    with path.open("wb") as stream:
        stream.truncate(100_000_000)  # sparse: it takes no room here
    with pytest.raises(SafeNeuronError, match="has 100 MB") as refused:
        read_mask(path)
    one_line(refused.value)


def test_a_device_that_never_ends_is_no_file() -> None:
    with pytest.raises(SafeNeuronError, match="not a file"):
        read_text(Path("/dev/zero"), 10)
    with pytest.raises(SafeNeuronError, match="not a file"):
        read_mask(Path("/dev/zero"))


def test_a_text_may_be_as_long_as_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("12345", "utf-8")
    assert read_text(path, 5) == "12345"
    with pytest.raises(SafeNeuronError, match="at most"):
        read_text(path, 4)


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "[" * DEEP + "]" * DEEP])
def test_deep_nesting_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SafeNeuronError) as refused:
        parse_mask(text)
    one_line(refused.value)
    for name in ("deep.json", "deep.jsonl"):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        for read in (read_pairs, read_prompts):
            with pytest.raises(SafeNeuronError) as refused:
                read(path)
            one_line(refused.value)


def test_a_slice_with_endless_digits_is_no_slice() -> None:
    for spec in (f"advbench[{'9' * 5000}:]", f"advbench[::{'9' * 5000}]"):
        with pytest.raises(SafeNeuronError, match="no prompt set") as refused:
            read_prompts(spec)
        one_line(refused.value)


def test_uploads_are_no_larger_than_a_mask() -> None:
    assert int(FLAGS["server.maxUploadSize"]) << 20 == LARGEST_MASK
    assert FLAGS["server.enableXsrfProtection"] == "true"


@pytest.mark.parametrize("value", EVIL_VALUES, ids=lambda value: repr(value)[:16])
def test_no_query_string_breaks_a_page(value: str) -> None:
    fill()
    for page in PAGES:
        test = opened(page, **dict.fromkeys(PARAMETERS, value))
        assert "<script" not in texts(test)
        assert "root:" not in texts(test)


@pytest.mark.parametrize(
    "manifest",
    ["{}", "[]", "null", "", "[" * DEEP, '{"schema": "safeneuron.entry/1"}', "summary", "files"],
    ids=lambda text: text[:12],
)
def test_no_page_raises_on_a_broken_entry(manifest: str, own_home: Path) -> None:
    for entry in fill():
        path = entry.file(MANIFEST)
        made = json.loads(path.read_text("utf-8"))
        if manifest == "summary":
            made["summary"] = {"model": 3, "widths": "all"}
            path.write_text(json.dumps(made), "utf-8")
        elif manifest == "files":
            made["files"] = {"../../../etc/passwd": "0" * 64}
            path.write_text(json.dumps(made), "utf-8")
        else:
            path.write_text(manifest, "utf-8")
    opened("settings")
    for page in SAY_WHAT_TO_DO:
        assert "safeneuron demo" in texts(opened(page))


@pytest.mark.parametrize("name", ["scores.parquet", "mask.json", "attack.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[[[["])
def test_no_page_raises_on_a_broken_file(name: str, content: bytes) -> None:
    for entry in fill():
        if entry.file(name).exists():
            entry.file(name).write_bytes(content)
    for page in PAGES:
        opened(page)  # asserts that nothing was raised


def request(model: str = "smollm2-135m-aligned", **fields: object) -> Request:
    return AttackRequest.model_validate({"model": model, **fields})


@pytest.mark.parametrize(
    "asked",
    [
        request("/etc"),
        request("../outside"),
        request("~/secrets"),
        request("a/../../b"),
        request("."),
        request("a\0b/c"),
        request(mask=Path("/etc/passwd")),
        request(mask=Path("masks/../../../etc/passwd")),
        request(harmful="/etc/passwd"),
        request(harmful="/etc/hosts.txt[:3]"),
        request(harmless="../prompts.json"),
        request(over_refusal="/srv/private.csv"),
        request(find_harmful="~root/notes.txt"),
        request(harmful="/etc/passwd#root[:3][:2]"),
        request(harmful="advbench[:3] + /etc/passwd"),
        request(harmful="advbench" + "[:9]" * 1000),
        request(harm_judge="guard:/srv/guard#harmbench"),
        request(harm_judge="rubric:http://10.0.0.1:8080/v1#model"),
        AlignRequest(model="smollm2-135m-aligned", safety="/srv/pairs.jsonl"),
        AlignRequest(model="smollm2-135m-aligned", safety="owner/name", general="../p.parquet"),
        AlignRequest(model="smollm2-135m-aligned", held_harmful="/etc/passwd"),
        AlignRequest(model="smollm2-135m-aligned", foundation=Path("/srv/mask.json")),
        IdentifyRequest(model="/"),
        AlignRequest(model="smollm2-135m-aligned", pairs=Path("/srv/pairs.jsonl")),
    ],
    ids=lambda asked: str(asked.model_dump(exclude_defaults=True))[:70],
)
def test_pages_read_nothing_outside(asked: Request, own_home: Path) -> None:
    own_home.mkdir()
    with pytest.raises(SafeNeuronError, match="outside what pages may read") as refused:
        require_inside(asked)
    one_line(refused.value)


REQUESTS = (IdentifyRequest, AttackRequest, AlignRequest, RedTeamRequest, RoundsRequest)
REQUESTS += (ChatRequest, NeuronRequest, Removal, Question)
# Texts in requests that are neither a path nor a name: scores, and expressions of them; a
# study's key; numbers of a mixture; what is said to a model.
NAMES_NOTHING = {"method", "tau", "share", "also", "study", "score", "prompt", "mixture"}


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_every_text_in_a_request_is_looked_at(kind: type[Request]) -> None:
    """A field added later must say what it names, or pages would hand it on unseen."""
    texts_in = {
        name
        for name, field in kind.model_fields.items()
        if str in (field.annotation, *get_args(field.annotation))
    }
    assert texts_in <= {*MODELS, *PROMPTS, *PAIRS, *JUDGES, *NAMES_NOTHING}


def test_a_link_in_the_store_leads_nowhere_else(own_home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (own_home / "models").mkdir(parents=True)
    (own_home / "models" / "mine").mkdir()
    (own_home / "models" / "link").symlink_to(outside)
    (own_home / "loop").symlink_to(own_home / "loop")
    assert is_inside(own_home / "models" / "mine")
    assert not is_inside(own_home / "models" / "link")
    assert not is_inside(own_home / "models" / ".." / ".." / "outside")
    assert not is_inside(Path(f"{own_home}-twin"))
    assert not is_inside(Path("a\0b"))
    require_inside(request(str(own_home / "models" / "mine")))
    with pytest.raises(SafeNeuronError, match="outside"):
        require_inside(request(str(own_home / "models" / "link")))


def test_what_pages_may_read(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_inside(request())
    require_inside(request("owner/name", harmful="advbench[:10]+harmbench", harmless="harmless"))
    require_inside(request("no-such-name", harmful="no-such-set"))  # refused later, by its name
    mine, prompts = tmp_path / "mine", tmp_path / "mine" / "prompts.txt"
    with pytest.raises(SafeNeuronError):
        require_inside(request(str(mine), harmful=str(prompts)))
    monkeypatch.setenv("SAFENEURON_FOLDERS", os.pathsep.join([str(tmp_path / "x"), str(mine)]))
    require_inside(request(str(mine), harmful=f"{prompts}[:3]"))


def test_what_the_command_line_used_is_vouched_for(own_home: Path) -> None:
    study, _ = fill()
    require_inside(request("a-model", mask=study.file("mask.json")))
    create("align", AlignRequest(model="/srv/model", mask=Path("/srv/mask.json")))
    require_inside(request("/srv/model", mask=Path("/srv/mask.json")))
    with pytest.raises(SafeNeuronError):
        require_inside(request("/srv/model2"))


def edited(change: Callable[[dict[str, Any]], None]) -> Path:
    """A job whose ``job.json`` somebody changed after it was made."""
    folder = create("attack", AttackRequest(model="a-model")).folder
    path = folder / "job.json"
    asked = json.loads(path.read_text("utf-8"))
    change(asked)
    path.write_text(json.dumps(asked), "utf-8")
    return folder


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no model": lambda job: job["request"].pop("model"),
    "model is a list": lambda job: job["request"].update(model=["a", "b"]),
    "unknown field": lambda job: job["request"].update(command="rm -rf /"),
    "out of range": lambda job: job["request"].update(seeds=10**9),
    "no such verb": lambda job: job.update(verb="../../bin/sh"),
    "another verb": lambda job: job.update(verb="align"),
    "an id that is a path": lambda job: job.update(id="../../../etc"),
    "request is no object": lambda job: job.update(request="model"),
    "no time": lambda job: job.update(created="<script>"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_request_edited_by_hand_is_refused(edit: str, own_home: Path) -> None:
    """At once, or by the job's own process before it does anything; pages go on."""
    folder = edited(EDITS[edit])
    for page in PAGES:
        opened(page, run=folder.name)
    try:
        job = read_folder(folder)
    except SafeNeuronError as error:
        one_line(error)
        return
    assert run(job) == "failed"
    said = json.loads(job.file("state.json").read_text("utf-8"))["error"]
    one_line(ValueError(said))
    assert not (own_home / "store").exists()


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b'{"entry": "../../etc", "attack": "/etc"}'])
def test_a_result_edited_by_hand_breaks_no_page(text: bytes) -> None:
    study, _ = fill()
    mask = study.file("mask.json")
    asked = AttackRequest(model="a-model", mask=mask)
    for verb, request in (("attack", asked), ("align", AlignRequest(model="a-model", mask=mask))):
        job = create(verb, request)
        job.file("result.json").write_bytes(text)
        job.file("events.jsonl").write_bytes(text + b"\n")
        state = json.loads(job.file("state.json").read_text("utf-8")) | {"state": "done"}
        job.file("state.json").write_text(json.dumps(state), "utf-8")
        for page in PAGES:
            assert "root:" not in texts(opened(page, run=job.id))


def test_a_form_refuses_a_path_in_one_line(own_home: Path) -> None:
    fill()
    test: AppTest = opened("safety_map")
    next(t for t in test.text_input if t.label == "Harmful prompts").set_value("/etc/passwd")
    next(button for button in test.button if button.label == "Identify").click().run()
    assert not test.exception
    assert "outside what pages may read" in test.error[0].value.replace("\\", "")
    assert not list_jobs()


def test_no_page_takes_html_from_data() -> None:
    """The one way to make markup live is to ask for it, and none does but the one that escapes."""
    for path in Path(MAIN).parent.rglob("*.py"):
        source = path.read_text("utf-8")
        assert "unsafe_allow_html" not in source, path
        assert "st.html" not in source or path.name == "tokens.py", path
        assert "components.v1" not in source, path
        assert "unsafe_allow_javascript" not in source, path


def test_every_chart_is_described() -> None:
    """Charts go through one function, which asks for the words."""
    for path in Path(MAIN).parent.rglob("*.py"):
        if path.name != "chart.py":
            assert "plotly_chart" not in path.read_text("utf-8"), path


def test_the_prompts_of_a_study_are_vouched_for(own_home: Path) -> None:
    """Whoever identified could read them; a page measures a neuron on the same."""
    study, _ = fill()
    made = json.loads(study.file(MANIFEST).read_text("utf-8"))
    made["summary"]["asked"] = {"model": "a-model", "harmful": "/srv/harmful.txt"}
    body = {name: value for name, value in made.items() if name != "sha256"}
    study.file(MANIFEST).write_text(sealed(body), "utf-8")
    asked = NeuronRequest(model="a-model", layer=0, neuron=1, harmful="/srv/harmful.txt")
    require_inside(asked)
    with pytest.raises(SafeNeuronError, match="outside"):
        require_inside(asked.model_copy(update={"harmful": "/srv/other.txt"}))
