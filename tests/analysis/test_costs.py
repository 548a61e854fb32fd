"""What removal costs: against transformers' own loss, edited weights and a kill in between."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from analysis.attacks import costs as module
from analysis.attacks.context import AttackContext, Planned, removal
from analysis.attacks.costs import MEASURED, compare_logits, measure_costs
from analysis.costs import Cost, Sums, cost_table, costs_of, printable_costs
from analysis.requests import AttackRequest, IdentifyRequest
from analysis.robustness import Setting, attack_table
from analysis.statistics import bootstrap_ratio
from analysis.study import attack, identify
from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.generate import prompt_ids
from toolkit.intervene import Intervention, write_into_weights
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet
from toolkit.over_refusal import read_over_refusal
from toolkit.progress import silent
from toolkit.prompt_sets import Prompt, PromptSet
from toolkit.rows import Plan

WIDTHS = [64, 64, 64]
TOKENS = 7
ASKED = PromptSet("s", tuple(Prompt(text) for text in HARMLESS[12:19]))
PRUNED = NeuronSet(WIDTHS, {0: [1, 5, 40], 1: [7], 2: list(range(20, 40))})


@pytest.fixture
def identify_request(tiny_llama: Path, tmp_path: Path) -> IdentifyRequest:
    for name, texts in (("harmful", HARMFUL[:12]), ("harmless", HARMLESS[:12])):
        (tmp_path / f"{name}.json").write_text(json.dumps(texts), "utf-8")
    return IdentifyRequest(
        model=str(tiny_llama),
        harmful=str(tmp_path / "harmful.json"),
        harmless=str(tmp_path / "harmless.json"),
        top=0.1,
    )


@pytest.fixture
def context(identify_request: IdentifyRequest) -> AttackContext:
    request = AttackRequest(
        model=identify_request.model, batch_size=3, cost_tokens=TOKENS, dtype="float32"
    )
    mask = identify(identify_request).mask
    return AttackContext(load_model(request.model), mask, request, {}, silent)


def planned_of(*extra: Planned) -> list[Planned]:
    return [Planned(Setting(name="ORI", neurons=0), Plan()), removal("FULL", PRUNED), *extra]


def whole_answers(loaded: LoadedModel) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer ids, through transformers' own generation, one prompt at a time."""
    found = []
    for text in ASKED.texts:
        prompt = prompt_ids(loaded, text)
        new = loaded.model.generate(
            torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
        said = loaded.tokenizer.decode(new[0, len(prompt) :], skip_special_tokens=True)
        ids = loaded.tokenizer(said, add_special_tokens=False)["input_ids"][:TOKENS]
        if ids:
            found.append((prompt, ids))
    assert len(found) > 3, "a tiny model that says nothing tests nothing"
    return found


def test_the_whole_model_costs_nothing_and_has_transformers_perplexity(
    context: AttackContext, tmp_path: Path
) -> None:
    whole, full = measure_costs(context, planned_of(), ASKED, tmp_path)
    answers = whole_answers(context.loaded)
    nll, tokens = 0.0, 0
    for prompt, answer in answers:
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            loss = context.loaded.model(torch.tensor([prompt + answer]), labels=labels).loss
        nll += float(loss) * len(answer)
        tokens += len(answer)
    assert (whole.kl, whole.kl_low, whole.kl_high) == (0.0, 0.0, 0.0)
    assert whole.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert (whole.n, whole.tokens, whole.broken) == (len(answers), tokens, 0)
    assert (full.n, full.tokens) == (whole.n, whole.tokens)


def test_divergence_equals_that_of_two_models_one_with_edited_weights(
    context: AttackContext, tmp_path: Path
) -> None:
    _, full = measure_costs(context, planned_of(), ASKED, tmp_path)
    pruned = load_model(context.request.model)
    write_into_weights(pruned.model, pruned.layout, Intervention(PRUNED))
    kl, nll, tokens = 0.0, 0.0, 0
    for prompt, answer in whole_answers(context.loaded):
        with torch.no_grad():
            ids = torch.tensor([prompt + answer])
            before, after = (
                m.model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for m in (context.loaded, pruned)
            )
        kl += float(kl_div(after, before, log_target=True, reduction="sum"))
        nll -= sum(float(after[place, token]) for place, token in enumerate(answer))
        tokens += len(answer)
    assert full.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert full.kl > 0.001
    assert full.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert full.kl_low is not None
    assert full.kl_high is not None
    assert full.kl_low < full.kl < full.kl_high


def test_the_whole_model_is_among_the_costs_unasked(context: AttackContext, tmp_path: Path) -> None:
    alone = measure_costs(context, planned_of()[1:], ASKED, tmp_path / "a")
    both = measure_costs(context, planned_of(), ASKED, tmp_path / "b")
    assert alone == both[::-1]


def test_a_cut_journal_goes_on_and_measures_nothing_twice(
    context: AttackContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = planned_of(removal("ES", NeuronSet(WIDTHS, {1: [3, 4]})))
    whole = measure_costs(context, planned, ASKED, tmp_path / "whole")
    lines = (tmp_path / "whole" / MEASURED).read_text("utf-8").splitlines(keepends=True)
    batches = math.ceil(whole[0].n / 3)
    assert len(lines) == 3 * batches
    real, read = module.answer_logits, []

    def counted(loaded: object, rows: list[object]) -> object:
        read.append(len(rows))
        return real(loaded, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "answer_logits", counted)
    for cut in (1, 3, len(lines) - 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        torn = "".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2]
        (folder / MEASURED).write_text(torn, "utf-8")
        read.clear()
        assert measure_costs(context, planned, ASKED, folder) == whole
        # ORI needs no pass of its own, and a batch that is begun reads the whole model again.
        pruned_left = sum(line % 3 != 0 for line in range(cut, len(lines)))
        begun_or_left = batches - cut // 3
        assert len(read) == pruned_left + begun_or_left
        assert (folder / MEASURED).read_text("utf-8") == "".join(lines)


def test_out_of_memory_halves_the_batch(
    context: AttackContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_costs(context, planned_of(), ASKED, tmp_path / "a")
    real = module.answer_logits

    def small(loaded: object, rows: list[object]) -> object:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no room")
        return real(loaded, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "answer_logits", small)
    halved = measure_costs(context, planned_of(), ASKED, tmp_path / "b")
    assert halved[1].kl == pytest.approx(whole[1].kl, rel=1e-4)
    assert [cost.tokens for cost in halved] == [cost.tokens for cost in whole]


def test_logits_that_are_not_finite_are_counted(context: AttackContext, tmp_path: Path) -> None:
    broken = Plan((Intervention(NeuronSet(WIDTHS, {1: [3]}), "hold", math.nan),))
    planned = planned_of(Planned(Setting(name="BROKEN", neurons=1), broken))
    whole, _, cost = measure_costs(context, planned, ASKED, tmp_path)
    assert (cost.n, cost.tokens, cost.broken) == (0, 0, whole.n)
    assert (cost.kl, cost.kl_low, cost.perplexity, cost.perplexity_high) == (None,) * 4
    assert Cost.model_validate_json(cost.model_dump_json()) == cost


def test_sums_of_one_answer_in_closed_form() -> None:
    whole = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    pruned = torch.tensor([[0.25, 0.5, 0.25, 0.0]]).log()
    sums = compare_logits(whole, pruned, [1])
    # 1/2 log 2 - 1/4 log 2; the token that both forbid adds nothing.
    assert sums.kl == pytest.approx(0.25 * math.log(2), abs=1e-7)
    assert sums.nll == pytest.approx(math.log(2), abs=1e-6)
    assert compare_logits(whole, pruned, [3]).broken, "a forbidden token has no likelihood"
    assert compare_logits(whole, pruned.masked_fill(pruned == pruned.max(), math.nan), [1]).broken


def test_means_over_seeds_draw_prompts_with_all_their_seeds() -> None:
    settings = [Setting(name="RANDOM", seed=seed, neurons=3) for seed in (0, 1)]
    first = [Sums(2, 1.0, 2.0), Sums(4, 0.4, 8.0), None]
    second = [Sums(2, 3.0, 4.0), Sums(4, 0.0, 0.0, broken=True), None]
    a, b, mean = costs_of(settings, [first, second])
    assert (a.seed, b.seed, mean.seed, mean.seeds) == (0, 1, None, 2)
    assert a.kl == pytest.approx(1.4 / 6)
    assert (b.kl, b.kl_low, b.n, b.broken) == (1.5, None, 1, 1)
    assert mean.kl == pytest.approx(4.4 / 8)
    assert mean.perplexity == pytest.approx(math.exp(14 / 8))
    assert (mean.n, mean.tokens, mean.broken) == (2, 8, 1)
    # Two prompts: the draws are one of them alone or both.
    assert mean.kl_low == pytest.approx(0.1)
    assert mean.kl_high == pytest.approx(1.0)
    huge = costs_of([settings[0]], [[Sums(1, 0.0, 800.0)]])[0]
    assert (huge.perplexity, huge.kl) == (None, 0.0)


def test_bootstrap_interval_of_a_ratio() -> None:
    bottom = np.array([1.0, 4.0, 2.0])
    assert bootstrap_ratio(3 * bottom, bottom) == pytest.approx((3.0, 3.0))
    drawn = np.random.default_rng(5).normal(10, 2, 400)
    low, high = bootstrap_ratio(drawn, np.ones(400))
    error = 1.96 * drawn.std() / 20
    assert low == pytest.approx(drawn.mean() - error, abs=0.03)
    assert high == pytest.approx(drawn.mean() + error, abs=0.03)
    assert bootstrap_ratio(drawn, np.ones(400)) == (low, high)


def xstest(path: Path) -> Path:
    rows = ["id,prompt,type,label"]
    rows += [f'{i},"{text}",homonyms,safe' for i, text in enumerate(HARMLESS[15:])]
    rows += [f'{i},"{text}",contrast_homonyms,unsafe' for i, text in enumerate(HARMFUL[15:])]
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def test_an_attack_with_costs_and_over_refusal(
    identify_request: IdentifyRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, attacked = tmp_path / "mask.json", tmp_path / "attacked.json"
    identify(identify_request).mask.write(mask)
    attacked.write_text(json.dumps(HARMFUL[12:]), "utf-8")
    request = AttackRequest(
        model=identify_request.model,
        mask=mask,
        harmful=str(attacked),
        harmless=identify_request.harmless,
        over_refusal=str(xstest(tmp_path / "xs.csv")),
        settings=("ORI", "FULL", "RANDOM"),
        seeds=2,
        max_new_tokens=4,
        cost_tokens=5,
        dtype="float32",
    )
    plain = attack(request)
    assert not plain.result.costs
    table = attack_table(plain.result)
    part = table[table["side"] == "over-refusal"]
    assert part["n"].tolist() == [5] * 5
    assert (part["refused_low"] <= part["refused"]).all()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("answered again")

    costed = request.model_copy(update={"costs": True})
    with monkeypatch.context() as patch:
        patch.setattr("analysis.attacks.run.answer_all", refuse)
        done = attack(costed)
    assert done.result.answers == plain.result.answers
    assert done.result.generation.cost_tokens == 5
    assert attack(costed).reused
    assert attack(request).entry.key == plain.entry.key
    costs = cost_table(done.result)
    assert costs["setting"].tolist() == ["ORI", "FULL", "RANDOM", "RANDOM", "RANDOM"]
    assert costs["seed"].isna().tolist() == [True, True, False, False, True]
    assert costs["neurons"].tolist() == [0] + 4 * [done.result.mask.count]
    assert (costs["kl"][1:] > 0).all()
    shown = printable_costs(done.result)
    assert shown["setting"].tolist() == ["ORI", "FULL", "RANDOM (mean of 2)"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("prompt\nHow do I kill a process?\n", "need a column 'label'"),
        ("prompt,label\nHow?,perhaps\n", "prompt 1 has the label 'perhaps'"),
        ("prompt,label\nHow?,unsafe\n", "no prompt that its label calls safe"),
        ("words,label\nHow?,safe\n", "has no prompt"),
        ("prompt,type\nHow?,\n", "prompt 1 has the type ''"),
    ],
)
def test_over_refusal_files_that_do_not_say(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "xs.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(SafeNeuronError, match=error):
        read_over_refusal(str(path))


def test_over_refusal_keeps_the_safe_prompts_and_their_types(tmp_path: Path) -> None:
    safe = read_over_refusal(str(xstest(tmp_path / "xs.csv")))
    assert safe.texts == HARMLESS[15:]
    assert {prompt.category for prompt in safe} == {"homonyms"}
    assert read_over_refusal(f"{tmp_path / 'xs.csv'}[::2]").texts == HARMLESS[15::2]
    # The authors' own file has no labels: its contrasts are the unsafe ones.
    by_type = tmp_path / "v2.csv"
    lines = (tmp_path / "xs.csv").read_text("utf-8").splitlines()
    by_type.write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n", "utf-8")
    assert read_over_refusal(str(by_type)).sha256 == safe.sha256
    with pytest.raises(SafeNeuronError, match="prompts are read from"):
        read_over_refusal(str(tmp_path / "xs.txt"))
