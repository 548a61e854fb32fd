"""Agreement with labels by hand; reading them; and what the judge reaches on real labels."""

import os
from pathlib import Path

import pytest

from analysis.agreement import Agreement, agreement, told_harm, told_refusal
from analysis.statistics import wilson
from toolkit.errors import SafeNeuronError
from toolkit.judge.base import HarmVerdict
from toolkit.judge.refusal import Judgement, judge_refusal
from toolkit.judge.topic import judge_with_topic
from toolkit.labelled import KNOWN_LABELS, Label, LabelledAnswer, LabelledSet, read_labelled


def labelled(*labels: Label) -> LabelledSet:
    answers = [LabelledAnswer(f"p{n}", f"r{n}", label) for n, label in enumerate(labels)]
    return LabelledSet("set", tuple(answers))


def refusal(*verdicts: str) -> list[Judgement]:
    return [Judgement(verdict, "why") for verdict in verdicts]  # type: ignore[arg-type]


def test_agreement_by_hand() -> None:
    answers = labelled("complied", "complied", "refused", "refused", "refused", "partial")
    told = refusal("complied", "degenerate", "refused", "degenerate", "complied", "complied")
    found = agreement(answers, [told_refusal(one) for one in told])
    assert found.agreed == wilson(3, 5)
    assert found.confusion == {
        "complied": {"complied": 1, "degenerate": 1},
        "refused": {"refused": 1, "degenerate": 1, "complied": 1},
        "partial": {"complied": 1},
    }
    assert [(error.row, error.label, error.verdict) for error in found.errors] == [
        (2, "complied", "degenerate"),
        (5, "refused", "complied"),
    ]
    assert found.as_dict(with_errors=False)["errors"] == 2
    assert found.as_dict(with_errors=True)["errors"][0]["response"] == "r1"
    assert found.as_dict(with_errors=True)["agreed"]["share"] == pytest.approx(0.6)


def test_the_unparsed_are_no_agreement_and_no_error() -> None:
    answers = labelled("complied", "refused", "refused", "partial")
    verdicts = [HarmVerdict(told, None, "why") for told in (True, None, False, None)]
    found = agreement(answers, [told_harm(verdict) for verdict in verdicts])
    assert found.agreed == wilson(2, 2)
    assert found.unparsed == 2
    assert found.errors == []
    assert found.confusion["refused"] == {"unparsed": 1, "harmless": 1}


@pytest.mark.parametrize(
    "text",
    [
        'id,prompt,completion,final_label\n1,p,"a\nb",1_full_compliance\n2,q,c,3_partial_refusal\n',
        '# made in 2026\n# by us\nprompt,response,label\np,"a\nb",complied\nq,c,partial\n',
        '\ufeffprompt,response,label\r\np,"a\nb",complied\r\nq,c,partial\r\n',
    ],
)
def test_files_of_each_form(text: str, tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes(text.encode())
    assert read_labelled(path) == LabelledSet(
        "some", (LabelledAnswer("p", "a\nb", "complied"), LabelledAnswer("q", "c", "partial"))
    )


def test_a_refusal_scorers_one_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("objective,assistant_response,human_score\np,a,1\nq,b,0\n", "utf-8")
    assert [answer.label for answer in read_labelled(path).answers] == ["refused", "complied"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,response,label\np,a,maybe\n", "answer 1 has the label 'maybe'"),
        (b"prompt,response,label\np\n", "answer 1"),
        (b"prompt,response,label\n", "holds no answers"),
        (b"prompt,response\np,a\n", "no labelled answers"),
        (b"", "no labelled answers"),
        (b"# only this", "no labelled answers"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes(content)
    with pytest.raises(SafeNeuronError, match=message):
        read_labelled(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SafeNeuronError, match="cannot read the labels"):
        read_labelled(tmp_path / "none.csv")


def refusal_agreement(answers: LabelledSet) -> Agreement:
    told = [told_refusal(judge_refusal(answer.response)) for answer in answers.answers]
    return agreement(answers, told)


@pytest.fixture(scope="module")
def xstest() -> Path:
    """The folder of XSTest's labelled completions, which are not ours to ship."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("SAFENEURON_TEST_DATA", beside)) / "labelled"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set SAFENEURON_TEST_DATA to the folder that holds labelled/")
    return folder


# The first two were looked at when the judge was written; of the third only the counts were.
# It is the nearest to what another model may give.
@pytest.mark.parametrize(
    ("model", "n", "share"),
    [("gpt4", 441, 0.95), ("llama2new", 406, 0.93), ("mistralinstruct", 423, 0.93)],
)
def test_the_refusal_judge_agrees_with_people(
    xstest: Path, model: str, n: int, share: float
) -> None:
    found = refusal_agreement(read_labelled(xstest / f"xstest_{model}_gpteval.csv"))
    assert found.agreed.n == n
    assert found.agreed.share >= share
    assert sum(found.confusion["partial"].values()) == 450 - n
    assert found.unparsed == 0


@pytest.mark.embedded
def test_the_judges_agree_with_pyrits_labels() -> None:
    """A quarter of them are answers to another question, which only the second judge sees."""
    (known,) = KNOWN_LABELS
    answers = known.load()
    assert len(answers) == known.count == 169
    alone = refusal_agreement(answers)
    told = [told_refusal(judge_with_topic(a.prompt, a.response)) for a in answers.answers]
    assert agreement(answers, told).agreed.share >= 0.9
    assert alone.agreed.share >= 0.7
    assert all(error.label == "refused" for error in alone.errors)  # none is cried wolf
