"""Whole, pruned and random side by side: each arm is what the model alone would say."""

from pathlib import Path

import pytest
import torch

from analysis.chat import Arm, Question, Removal, Said, answer, highest, rankable, removed
from analysis.requests import parse_request
from tests.masks import mask_file
from tests.studies import drawn_study
from tests.tiny import HARMFUL, save_tiny, tiny_tokenizer
from toolkit.chat import Turn, conversation_ids
from toolkit.errors import SafeNeuronError
from toolkit.generate import generate, prompt_ids
from toolkit.intervene import Intervention, intervene
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet

WIDTHS = [64, 64, 64]
PROMPT = HARMFUL[0]
ALL: dict[Arm, tuple[Said, ...]] = {"whole": (), "pruned": (), "random": ()}


def asked(removal: Removal, before: dict[Arm, tuple[Said, ...]] | None = None) -> Question:
    return Question(removal=removal, before=before or ALL, prompt=PROMPT, max_new_tokens=12)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_every_arm_is_plain_generation_under_its_intervention(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", family)
    loaded = load_model(str(folder))
    study = drawn_study(folder, loaded.layout.widths)
    removal = Removal(study=study.key, score="es", share=0.2, seed=3)
    heard: dict[Arm, str] = dict.fromkeys(ALL, "")

    def on_text(arm: Arm, new: str) -> None:
        heard[arm] += new

    answers = answer(loaded, asked(removal), on_text)
    neurons, _ = removed(removal)
    assert len(neurons) == int(0.2 * neurons.total)
    random = neurons.random_like(3)
    assert random.counts().tolist() == neurons.counts().tolist()
    assert not len(random & neurons)
    expected = {"whole": generate(loaded, [PROMPT], 12)[0]}
    for arm, chosen in (("pruned", neurons), ("random", random)):
        with intervene(loaded.model, loaded.layout, Intervention(chosen)):
            expected[arm] = generate(loaded, [PROMPT], 12)[0]
    assert {arm: told.text for arm, told in answers.items()} == expected
    assert len(set(expected.values())) == 3
    # What was told on the way is how the answers begin.
    for arm, text in heard.items():
        assert expected[arm].startswith(text)
    assert any(heard.values())


def test_a_mask_is_removed_whole(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_llama))
    neurons = NeuronSet(WIDTHS, {0: range(30), 2: range(40)})
    path = Path(mask_file(tmp_path / "mask.json", neurons, model=loaded.info))
    told = answer(loaded, asked(Removal(mask=path), {"pruned": ()}), lambda arm, new: None)
    with intervene(loaded.model, loaded.layout, Intervention(neurons)):
        assert told["pruned"].text == generate(loaded, [PROMPT], 12)[0]


def test_what_was_said_before_is_read(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    study = drawn_study(tiny_llama, WIDTHS)
    before = (Said(role="user", text="Hi"), Said(role="assistant", text="Hello, you"))
    question = asked(Removal(study=study.key), {"whole": before})
    told = answer(loaded, question, lambda arm, new: None)
    messages = [{"role": said.role, "content": said.text} for said in before]
    messages.append({"role": "user", "content": PROMPT})
    ids = loaded.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        tokens = loaded.model.generate(**ids, max_new_tokens=12, do_sample=False)
    text = loaded.tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert told["whole"].text == text


def test_one_turn_is_tokenised_as_a_prompt(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    turn = Turn("user", PROMPT)
    assert conversation_ids(loaded, [turn]) == prompt_ids(loaded, PROMPT)
    loaded.tokenizer = tiny_tokenizer()
    loaded.tokenizer.chat_template = None
    assert conversation_ids(loaded, [turn]) == prompt_ids(loaded, PROMPT)


def test_drawn_answers_are_those_of_their_seed(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    study = drawn_study(tiny_llama, WIDTHS)
    question = asked(Removal(study=study.key))
    texts = [
        [told.text for told in answer(loaded, q, lambda arm, new: None).values()]
        for q in (question.model_copy(update={"sample": seed}) for seed in (1, 1, 2))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_letters_of_several_tokens_come_whole(tiny_llama: Path) -> None:
    from toolkit.chat import UNFINISHED, _Growing

    loaded = load_model(str(tiny_llama))
    text = "héllo 🙂 wörld"
    growing = _Growing(loaded.tokenizer)
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = [growing.words(ids[: end + 1]) for end in range(len(ids))]
    assert "".join(parts) == text
    assert "" in parts  # the smiling face has four bytes
    assert not any(UNFINISHED in part for part in parts)


def test_what_cannot_be_removed_is_said_in_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_llama))
    study = drawn_study(tiny_llama, WIDTHS)
    other = save_tiny(tmp_path / "other", seed=1)
    foreign = drawn_study(other, WIDTHS, seed=1)
    for removal, said in (
        (Removal(study="0" * 40), "no study"),
        (Removal(study=study.key, score="layer"), "no score 'layer'"),
        (Removal(study=foreign.key), "made for another model"),
        (Removal(mask=tmp_path / "none.json"), "cannot read the mask"),
    ):
        with pytest.raises(SafeNeuronError, match=said):
            answer(loaded, asked(removal), lambda arm, new: None)
    told = answer(loaded, asked(Removal(study=foreign.key)), lambda arm, new: None, force=True)
    assert set(told) == set(ALL)


def test_a_conversation_longer_than_the_model_reads_is_refused(tiny_llama: Path) -> None:
    loaded: LoadedModel = load_model(str(tiny_llama))
    study = drawn_study(tiny_llama, WIDTHS)
    question = asked(Removal(study=study.key)).model_copy(update={"max_new_tokens": 4000})
    with pytest.raises(SafeNeuronError, match="begin a new one"):
        answer(loaded, question, lambda arm, new: None)


def test_the_scores_of_a_table_that_rank(tiny_llama: Path) -> None:
    import pandas as pd

    path = drawn_study(tiny_llama, WIDTHS).file("scores.parquet")
    assert rankable(path) == ["es", "sas", "t"]
    chosen = highest(path, WIDTHS, "sas", 0.05)
    table = pd.read_parquet(path)
    best = table[table["delta"] > 0].sort_values("sas", ascending=False).head(len(chosen))
    assert set(chosen) == set(zip(best["layer"], best["neuron"], strict=True))
    path.write_bytes(b"no table")
    with pytest.raises(SafeNeuronError, match="cache verify"):
        highest(path, WIDTHS, "sas", 0.05)


@pytest.mark.parametrize(
    "values",
    [
        {"mask": "m.json", "study": "ab12"},
        {},
        {"study": "../../etc"},
        {"study": "ab12", "share": 0},
        {"study": "ab12", "share": 1},
        {"study": "ab12", "command": "x"},
    ],
)
def test_a_removal_names_one_thing(values: dict[str, object]) -> None:
    with pytest.raises(SafeNeuronError):
        parse_request(Removal, values)
