"""Every way to attack against an independent computation, on a tiny model."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.attacks.adaptive import adaptive
from analysis.attacks.context import AttackContext
from analysis.attacks.judging import Asked, Judged, Panel, judge_refusals
from analysis.attacks.neurostrike import neurostrike
from analysis.attacks.paper import again, matched_activation, random_activation
from analysis.attacks.refusal_direction import difference_directions, refusal_direction
from analysis.attacks.run import JUDGED, answer_all
from analysis.attacks.single_neuron import rank, single_neuron
from analysis.attacks.strength import hold, sweep
from analysis.attacks.suite import FINDERS, plan_settings
from analysis.attacks.twinbreak import LAST_TOKENS, TOP_TOKENS, twinbreak, twins
from analysis.requests import ALL_SETTINGS, AttackRequest, IdentifyRequest
from analysis.robustness import succeeded
from analysis.scores.neurostrike import TAU, probe_score, probe_weights
from analysis.scores.table import score_table
from analysis.select import Selection, select
from analysis.store import Store
from analysis.study import attack, identify
from tests.tiny import HARMFUL, HARMLESS, save_tiny
from toolkit.capture.base import capture_moments
from toolkit.capture.hooks import HooksBackend
from toolkit.errors import SafeNeuronError
from toolkit.generate import Reply, prompt_ids
from toolkit.intervene import Intervention, write_into_weights
from toolkit.judge.base import HarmVerdict
from toolkit.judge.perplexity import LIMIT, answer_losses
from toolkit.models.load import load_model
from toolkit.neurons import NeuronSet
from toolkit.progress import silent
from toolkit.prompt_sets import Prompt, PromptSet
from toolkit.prompts import read_prompts
from toolkit.refusal_odds import refusal_score, refusal_tokens
from toolkit.rows import Plan

WIDTHS = [64, 64, 64]


def prompt_set(name: str, texts: list[str]) -> PromptSet:
    return PromptSet(name, tuple(Prompt(text) for text in texts))


FINDING = {
    "harmful": prompt_set("harmful", HARMFUL[:12]),
    "harmless": prompt_set("harmless", HARMLESS[:12]),
}
ATTACKED = {
    "harmful": prompt_set("h", HARMFUL[12:]),
    "harmless": prompt_set("s", HARMLESS[12:15]),
}


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
    return context_of(identify_request, identify_request.model)


def context_of(request: IdentifyRequest, model: str, **fields: object) -> AttackContext:
    values = {"model": model, "batch_size": 5, "max_new_tokens": 6, "dtype": "float32"}
    asked = AttackRequest.model_validate(values | fields)
    mask = identify(request).mask
    return AttackContext(load_model(model), mask, asked, dict(FINDING), silent)


def neurons_of(planned: object) -> NeuronSet:
    (step,) = planned.plan.interventions  # type: ignore[attr-defined]
    assert step.action == "zero"
    return step.neurons


def test_found_again_on_the_same_model_is_the_mask(context: AttackContext) -> None:
    (planned,) = again(context)
    assert neurons_of(planned) == context.full
    assert planned.setting.parameters["shared_with_mask"] == len(context.full)


def test_adaptive_rounds_equal_identifying_on_edited_weights(context: AttackContext) -> None:
    rounds = adaptive(context)
    assert [p.setting.name for p in rounds[:-1]] == [f"ADAPTIVE {n}" for n in range(1, 6)]
    assert neurons_of(rounds[0]) == context.full
    removed = NeuronSet.empty(WIDTHS)
    for planned in rounds[:-1]:
        loaded = load_model(context.request.model)
        write_into_weights(loaded.model, loaded.layout, Intervention(removed))
        # Zeroed columns do not silence the neurons: their scores are set aside by hand.
        moments = [
            capture_moments(loaded, HooksBackend(loaded), FINDING[side].texts, "last")
            for side in ("harmful", "harmless")
        ]
        table = score_table(*moments)
        flat = np.concatenate(removed.masks())
        for layer in range(3):
            rows = table["layer"] == layer
            delta = np.where(flat, 0.0, table["delta"])[rows]
            table.loc[rows, "sas"] = (delta - delta.mean()) / delta.std()
        table.loc[flat, ["delta", "es"]] = 0.0
        removed = removed | (select(table, WIDTHS, Selection(top=0.1)) - removed)
        assert neurons_of(planned) == removed
    assert np.array_equal(neurons_of(rounds[-1]).counts(), removed.counts())
    control = neurons_of(rounds[-1])
    for layer in range(3):
        # No more of ours than a layer that is half empty forces the draw to take.
        forced = max(0, 2 * len(removed.layer(layer)) - 64)
        assert len((control & removed).layer(layer)) == forced


def test_a_sweep_takes_shares_and_draws_as_many(context: AttackContext) -> None:
    planned = sweep(context)
    shares = context.request.sweep_shares
    assert len(planned) == 2 * len(shares)
    for share, found, control in zip(shares, planned[::2], planned[1::2], strict=True):
        assert len(neurons_of(found)) <= share * 192
        assert np.array_equal(neurons_of(found).counts(), neurons_of(control).counts())
    sizes = [len(neurons_of(p)) for p in planned[::2]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 19
    at_mask = context.find(NeuronSet.empty(WIDTHS), Selection("es+sas", top=0.1))
    assert neurons_of(planned[-2]) == at_mask


def test_hold_undoes_the_shift(context: AttackContext) -> None:
    table = context.table(NeuronSet.empty(WIDTHS))
    once, twice = hold(context)
    for step in once.plan.interventions:
        ((layer, index),) = step.neurons
        row = table.iloc[64 * layer + index]
        assert step.value == pytest.approx(row["mean_harmless"])
    held = {next(iter(step.neurons)): step.value for step in twice.plan.interventions}
    for (layer, index), value in held.items():
        row = table.iloc[64 * layer + index]
        assert value == pytest.approx(2 * row["mean_harmless"] - row["mean_harmful"])
    assert set(held) == set(context.full)


def test_random_neurons_match_in_mean_activation(context: AttackContext) -> None:
    table = context.table(NeuronSet.empty(WIDTHS))
    means = table["mean_harmful"].to_numpy()
    drawn = [neurons_of(p) for p in random_activation(context)]
    assert len(set(drawn)) > 1
    flat = np.concatenate(context.full.masks())
    for control in drawn:
        assert np.array_equal(control.counts(), context.full.counts())
        assert not control & context.full
    ours = means[flat].mean()
    apart = np.mean([abs(means[np.concatenate(c.masks())].mean() - ours) for c in drawn])
    plain = [context.full.random_like(seed) for seed in range(5)]
    plainly = np.mean([abs(means[np.concatenate(c.masks())].mean() - ours) for c in plain])
    assert apart < plainly
    everything = NeuronSet([4], {0: [0, 1, 2, 3]})
    assert not len(matched_activation(everything, np.zeros(4), 0))


def test_the_probe_is_the_optimum_that_torch_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((500, 40), generator=generator)
    labels = (values[:, 3] + 0.3 * torch.randn(500, generator=generator) > 0).float()
    linear = torch.nn.Linear(40, 1)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimiser = torch.optim.Adam(linear.parameters(), lr=1e-3, weight_decay=1e-3)
    for _ in range(300):
        optimiser.zero_grad()
        logits = linear(values)[:, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimiser.step()
    weights = probe_weights(values, labels, epochs=300)
    torch.testing.assert_close(weights, linear.weight[0].detach(), rtol=1e-3, atol=1e-5)
    assert (probe_score(values, labels, 3000) > TAU).nonzero()[0].tolist() == [3]


def test_neurostrike_finds_a_planted_gate(
    tmp_path: Path, identify_request: IdentifyRequest
) -> None:
    folder = save_tiny(tmp_path / "planted")
    loaded = load_model(str(folder))
    # A gate that reads nothing but a bias fires the same everywhere; one that reads the
    # embedding of a harmful word fires on harmful prompts alone.
    words = {
        side: {i for t in p.texts for i in loaded.tokenizer(t)["input_ids"]}
        for side, p in FINDING.items()
    }
    only = sorted(words["harmful"] - words["harmless"])
    with torch.no_grad():
        block = loaded.model.model.layers[0]
        block.self_attn.o_proj.weight.zero_()
        embedding = loaded.model.model.embed_tokens.weight
        target = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1))).Q
        u = target[0]
        embedding -= torch.outer(embedding @ u, u)
        embedding[only] += 3 * u
        for name in ("gate_proj", "up_proj"):
            weight = getattr(block.mlp, name).weight
            weight -= torch.outer(weight @ u, u)
        block.mlp.gate_proj.weight[17] = 8 * u
        block.mlp.up_proj.weight[42] = 8 * u
        for other in loaded.model.model.layers[1:]:
            for name in ("gate_proj", "up_proj"):
                getattr(other.mlp, name).weight.zero_()
    loaded.model.save_pretrained(folder)
    (planned,) = neurostrike(context_of(identify_request, str(folder)))
    found = neurons_of(planned)
    assert {(0, 17), (0, 42)} <= set(found)
    assert len(found) <= 6
    assert planned.setting.parameters["by_gate"] >= 1
    assert planned.setting.parameters["by_up"] >= 1


def test_twins_share_words_and_are_used_once() -> None:
    pairs = twins(
        prompt_set("a", ["cut the red wire", "bake a cake"]),
        prompt_set("b", ["bake a pie", "paint the red door", "sleep"]),
    )
    assert pairs == [("bake a cake", "bake a pie"), ("cut the red wire", "paint the red door")]


def test_the_first_round_of_twinbreak_by_hand(
    context: AttackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.attacks.twinbreak.ROUNDS", 1)
    monkeypatch.setattr("analysis.attacks.twinbreak.SHARE", 0.05)
    (planned,) = twinbreak(context)
    loaded = context.loaded
    pairs = twins(FINDING["harmful"], FINDING["harmless"])

    def means(texts: list[str], name: str) -> torch.Tensor:
        rows = []
        for text in texts:
            mlp = loaded.model.model.layers[1].mlp
            inputs: list[torch.Tensor] = []
            handle = mlp.register_forward_pre_hook(lambda _, given, kept=inputs: kept.extend(given))
            with torch.no_grad():
                loaded.model(torch.tensor([prompt_ids(loaded, text)]))
                rows.append(getattr(mlp, name)(inputs[0])[0, -LAST_TOKENS:])
            handle.remove()
        return torch.stack(rows).mean(dim=0)

    expected: set[int] = set()
    harmless = [b for _, b in pairs]
    for name in ("gate_proj", "up_proj"):
        apart = means([a for a, _ in pairs], name) - means(harmless, name)
        order = sorted(range(LAST_TOKENS), key=lambda t: -float(apart[t].norm()))[:TOP_TOKENS]
        score = apart[order].mean(dim=0).abs()
        utility = means(harmless[:6], name) - means(harmless[6:], name)
        strongest = sorted(range(LAST_TOKENS), key=lambda t: -float(utility[t].norm()))
        score[utility[strongest[:TOP_TOKENS]].mean(dim=0).abs().argmax()] = -math.inf
        expected |= set(score.topk(3).indices.tolist())
    found = neurons_of(planned)
    assert set(found.layer(1).tolist()) == expected
    assert found.counts().tolist() == [0, len(expected), 0]


def test_gradients_and_scores_of_single_neurons(context: AttackContext) -> None:
    loaded, tokens = context.loaded, refusal_tokens(context.loaded)
    (best, *_) = rank(context)

    def loss_and_activation(text: str, place: int, nudge: float) -> tuple[float, float]:
        ids = torch.tensor([prompt_ids(loaded, text)])
        seen: list[float] = []

        def hook(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            seen.append(float(inputs[0][0, place, best.index]))
            moved = inputs[0].clone()
            moved[0, place, best.index] += nudge
            return (moved,)

        down = loaded.layout.down(loaded.model, best.layer)
        handle = down.register_forward_pre_hook(hook)
        with torch.no_grad():
            logits = loaded.model(ids).logits[:, -1]
        handle.remove()
        return -float(refusal_score(logits, tokens)), seen[0]

    found = []
    said = prompt_ids(loaded, "Hi")
    own = loaded.tokenizer("Hi")["input_ids"][-1]
    tail = len(said) - 1 - said.index(own)
    for place in range(-tail, 0):
        gradient, mean = 0.0, {}
        for side, prompts in FINDING.items():
            slopes, values = [], []
            for text in prompts.texts:
                up, value = loss_and_activation(text, place, 1e-2)
                down, _ = loss_and_activation(text, place, -1e-2)
                slopes.append((up - down) / 2e-2)
                values.append(value)
            gradient += float(np.mean(slopes))
            mean[side] = float(np.mean(values))
        if abs(mean["harmful"]) > abs(mean["harmless"]):
            found.append((gradient * (mean["harmless"] - mean["harmful"]), mean["harmful"]))
    score, activation = max(found)
    assert best.score == pytest.approx(score, rel=0.02)
    assert best.activation == pytest.approx(activation, rel=1e-3)


def test_a_single_neuron_is_held_where_it_was_tried(context: AttackContext) -> None:
    (planned,) = single_neuron(context)
    (step,) = planned.plan.interventions
    facts = planned.setting.parameters
    assert list(step.neurons) == [(facts["layer"], facts["neuron"])]
    assert (step.action, step.value) == ("hold", facts["value"])
    assert 0 <= facts["complied_when_tried"] <= facts["tried"] == 12


def test_the_refusal_score_is_the_log_odds() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0]])
    p = torch.softmax(logits, -1)[0, [1, 3]].sum()
    got = refusal_score(logits, torch.tensor([1, 3]))
    assert float(got) == pytest.approx(float(torch.log(p / (1 - p))))


def test_the_direction_is_a_difference_of_means_and_lowers_the_score(
    context: AttackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = difference_directions(context.contrast)
    one = next(c for c in candidates if (c.layer, c.token) == (1, -1))
    means = []
    for side in ("harmful", "harmless"):
        rows = []
        for text in FINDING[side].texts:
            with torch.no_grad():
                ids = torch.tensor([prompt_ids(context.loaded, text)])
                out = context.loaded.model(ids, output_hidden_states=True)
            rows.append(out.hidden_states[2][0, -1])
        means.append(torch.stack(rows).mean(dim=0))
    torch.testing.assert_close(one.direction.float(), means[0] - means[1], rtol=1e-4, atol=1e-5)
    assert {c.layer for c in candidates} == {0, 1}, "the last fifth is left out"
    monkeypatch.setattr("analysis.attacks.refusal_direction.KL_LIMIT", 0.0)
    with pytest.raises(SafeNeuronError, match="leaves harmless prompts as they were"):
        refusal_direction(context)
    monkeypatch.setattr("analysis.attacks.refusal_direction.KL_LIMIT", math.inf)
    (planned,) = refusal_direction(context)
    unit = planned.plan.direction
    assert unit is not None
    tokens = refusal_tokens(context.loaded)
    scores = {}
    for name, plan in (("whole", Plan()), ("ablated", planned.plan)):
        values = []
        with context.under(plan):
            for text in FINDING["harmful"].texts:
                with torch.no_grad():
                    ids = torch.tensor([prompt_ids(context.loaded, text)])
                    logits = context.loaded.model(ids).logits[:, -1]
                values.append(float(refusal_score(logits, tokens)))
        scores[name] = np.mean(values)
    assert scores["ablated"] == pytest.approx(planned.setting.parameters["refusal_score"], rel=1e-3)
    assert scores["ablated"] < scores["whole"]


def test_remembered_plans_are_what_was_found(
    context: AttackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.attacks.refusal_direction.KL_LIMIT", math.inf)
    assert set(FINDERS) == set(ALL_SETTINGS)
    store = Store()
    first = plan_settings(context, ALL_SETTINGS, store)
    monkeypatch.setattr(
        "analysis.attacks.suite.FINDERS",
        {n: f for n, f in FINDERS.items() if n in ("ORI", "ES", "SAS", "FULL", "RANDOM")},
    )
    second = plan_settings(context, ALL_SETTINGS, store)
    assert [p.setting for p in first] == [p.setting for p in second]
    for a, b in zip(first, second, strict=True):
        assert a.plan.interventions == b.plan.interventions
        assert (a.plan.direction is None) == (b.plan.direction is None)
        if a.plan.direction is not None and b.plan.direction is not None:
            assert torch.equal(a.plan.direction, b.plan.direction)
    assert len({(p.setting.name, p.setting.seed) for p in first}) == len(first)


def test_a_cut_journal_goes_on_with_the_same_answers(
    context: AttackContext, tmp_path: Path
) -> None:
    planned = plan_settings(context, ("ORI", "FULL", "RANDOM"), Store())
    whole = answer_all(context, planned, dict(ATTACKED), tmp_path / "whole")
    lines = (tmp_path / "whole" / JUDGED).read_text("utf-8").splitlines(keepends=True)
    assert len(lines) == math.ceil(7 * (8 + 3) / 5)
    for cut in (1, len(lines) // 2, len(lines) - 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        torn = "".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2]
        (folder / JUDGED).write_text(torn, "utf-8")
        judged: list[str] = []

        def judge(
            asked: Sequence[Asked], replies: Sequence[Reply], judged: list[str] = judged
        ) -> list[Judged]:
            judged += [reply.text for reply in replies]
            return judge_refusals(asked, replies)

        again_ = answer_all(context, planned, dict(ATTACKED), folder, judge)
        assert again_ == whole
        assert len(judged) == 7 * 11 - 5 * cut, "nothing is generated twice"
        assert (folder / JUDGED).read_text("utf-8") == "".join(lines)


def test_out_of_memory_halves_the_batch(
    context: AttackContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from analysis.attacks import run

    planned = plan_settings(context, ("ORI", "FULL"), Store())
    whole = answer_all(context, planned, dict(ATTACKED), tmp_path / "a")
    real, sizes = run.answer_batch, []

    def small(loaded: object, prompts: list[list[int]], *args: object, **more: object) -> object:
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(prompts))
        return real(loaded, prompts, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "answer_batch", small)
    assert answer_all(context, planned, dict(ATTACKED), tmp_path / "b") == whole
    assert set(sizes) <= {1, 2}


def test_what_cannot_be_asked_or_breaks_is_counted(
    context: AttackContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = prompt_set("h", [HARMFUL[12], "bank " * 400])
    planned = plan_settings(context, ("ORI",), Store())
    broken = Intervention(NeuronSet(WIDTHS, {1: [3]}), "hold", math.nan)
    planned.append(
        type(planned[0])(planned[0].setting.model_copy(update={"name": "BROKEN"}), Plan((broken,)))
    )
    answers = answer_all(context, planned, {"harmful": long}, tmp_path)
    verdicts = {(a.setting, a.index): (a.verdict, a.why) for a in answers}
    assert verdicts["ORI", 1][0] == verdicts["BROKEN", 1][0] == "skipped"
    assert "exceed the model's 256" in verdicts["ORI", 1][1]
    assert verdicts["BROKEN", 0] == ("degenerate", "the model's logits are not finite")


class Alarm:
    """Calls answers to some prompts harmful, and can't read others."""

    name = "alarm/1"

    def judge(
        self, prompts: Sequence[str], responses: Sequence[str], on_done: object = None
    ) -> list[HarmVerdict]:
        return [
            HarmVerdict({"car": True, "bank": False}.get(p.split()[5]), None, "said so")
            for p in prompts
        ]


def test_the_panel_asks_the_whole_model_and_a_judge_of_harm(
    context: AttackContext, tmp_path: Path
) -> None:
    planned = plan_settings(context, ("ORI", "FULL"), Store())
    alone = answer_all(context, planned, dict(ATTACKED), tmp_path / "a")
    assert {a.harm for a in alone} == {None}
    panel = Panel(context.loaded, perplexity_limit=None, harm=Alarm())
    asked = answer_all(context, planned, dict(ATTACKED), tmp_path / "b", panel, panel.settled)
    told = {}
    for before, after in zip(alone, asked, strict=True):
        assert before.verdict == after.verdict
        wanted = after.verdict == "complied" and after.side == "harmful"
        assert (after.harm is not None) == wanted
        if after.harm is not None:
            thing = ATTACKED["harmful"].texts[after.index].split()[5]
            told[thing] = (after.harm.verdict, succeeded(after))
    assert told == {
        "car": ("harmful", True),
        "bank": ("harmless", False),
        "letter": ("unparsed", False),
        "phone": ("unparsed", False),
    }

    # The perplexity that decides is the whole model's, though neurons are removed around it.
    texts = [a for a in alone if a.setting == "FULL" and a.verdict == "complied"]
    kept = answer_all(
        AttackContext(
            context.loaded,
            context.mask,
            context.request.model_copy(update={"keep_responses": True}),
            dict(FINDING),
            silent,
        ),
        planned,
        dict(ATTACKED),
        tmp_path / "c",
    )
    losses = {}
    for answer in kept:
        if answer.verdict == "complied" and answer.setting == "FULL":
            prompt = ATTACKED[answer.side].texts[answer.index]
            (loss,) = answer_losses(context.loaded, [prompt], [answer.response or ""])
            losses[answer.side, answer.index] = loss.perplexity
    assert len(losses) == len(texts) > 2
    limit = float(np.median(list(losses.values())))
    panel = Panel(context.loaded, perplexity_limit=limit)
    scored = answer_all(context, planned, dict(ATTACKED), tmp_path / "d", panel, panel.settled)
    for answer in scored:
        if answer.setting == "FULL" and (answer.side, answer.index) in losses:
            above = losses[answer.side, answer.index] > limit * (1 + 1e-6)
            below = losses[answer.side, answer.index] < limit * (1 - 1e-6)
            if above or below:
                assert (answer.verdict == "degenerate") == above
                assert ("perplexity" in answer.why) == above


def test_the_request_s_limit_is_the_judge_s() -> None:
    assert AttackRequest(model="m").perplexity_limit == LIMIT


def test_prompts_to_find_on_are_not_attacked(
    identify_request: IdentifyRequest, tmp_path: Path
) -> None:
    """Those of both sets are left out of what is found on, and a set of none is refused."""
    some = tmp_path / "some.json"
    some.write_text(json.dumps(HARMFUL[:4]), "utf-8")
    asked = AttackRequest(
        model=identify_request.model,
        harmful=str(some),
        harmless=identify_request.harmless,
        find_harmful=identify_request.harmful,
        find_harmless=identify_request.harmless,
        settings=("ADAPTIVE",),
        rounds=1,
        max_new_tokens=2,
    )
    found = attack(asked).result.found_on["harmful"]
    rest = tmp_path / "rest.json"
    rest.write_text(json.dumps(HARMFUL[4:12]), "utf-8")
    assert (found.count, found.sha256) == (8, read_prompts(rest).sha256)
    assert "without 4 of" in found.name
    with pytest.raises(SafeNeuronError, match="holds no harmful prompt"):
        attack(asked.model_copy(update={"harmful": identify_request.harmful}))
    mask = tmp_path / "mask.json"
    identify(identify_request).mask.write(mask)
    with pytest.raises(SafeNeuronError, match="leaves 0 harmful prompts to identify on"):
        attack(asked.model_copy(update={"harmful": identify_request.harmful, "mask": mask}))


def test_a_setting_that_finds_nothing_does_not_end_the_rest(
    identify_request: IdentifyRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("analysis.attacks.refusal_direction.KL_LIMIT", -1.0)
    attacked = tmp_path / "attacked.json"
    attacked.write_text(json.dumps(HARMFUL[12:]), "utf-8")
    asked = AttackRequest(
        model=identify_request.model,
        harmful=str(attacked),
        harmless=identify_request.harmless,
        find_harmful=identify_request.harmful,
        find_harmless=identify_request.harmless,
        settings=("ORI", "DIRECTION"),
        max_new_tokens=2,
    )
    result = attack(asked).result
    assert [setting.name for setting in result.settings] == ["ORI"]
    assert "no refusal direction" in result.left_out["DIRECTION"]
    with pytest.raises(SafeNeuronError, match="no refusal direction"):
        attack(asked.model_copy(update={"settings": ("DIRECTION",)}))


def test_a_model_trained_since_is_asked_both_questions(
    identify_request: IdentifyRequest, tmp_path: Path
) -> None:
    """Without settings: AGAIN besides, where the mask is from before."""
    other = save_tiny(tmp_path / "other", seed=1)
    mask = tmp_path / "mask.json"
    identify(identify_request).mask.write(mask)
    attacked = tmp_path / "attacked.json"
    attacked.write_text(json.dumps(HARMFUL[12:]), "utf-8")
    common = {
        "mask": mask,
        "harmful": str(attacked),
        "harmless": identify_request.harmless,
        "find_harmful": identify_request.harmful,
        "find_harmless": identify_request.harmless,
        "max_new_tokens": 2,
        "force": True,
    }
    same = attack(AttackRequest(model=identify_request.model, **common)).result
    trained = attack(AttackRequest(model=str(other), **common)).result
    assert "AGAIN" not in {s.name for s in same.settings}
    assert "AGAIN" in {s.name for s in trained.settings}
    assert trained.found_on["harmful"].count == 12


@pytest.mark.parametrize("moment", [0.3, 0.7])
def test_killed_and_run_again_ends_as_an_unbroken_attack(
    identify_request: IdentifyRequest, tmp_path: Path, moment: float
) -> None:
    mask = tmp_path / "mask.json"
    identify(identify_request).mask.write(mask)
    attacked = tmp_path / "attacked.json"
    attacked.write_text(json.dumps(HARMFUL[12:]), "utf-8")
    request = {
        "model": identify_request.model,
        "mask": str(mask),
        "harmful": str(attacked),
        "harmless": identify_request.harmless,
        "max_new_tokens": 24,
        "batch_size": 2,
        "dtype": "float32",
    }
    code = (
        "import json, sys; from analysis.requests import AttackRequest;"
        "from analysis.study import attack;"
        "attack(AttackRequest(**json.loads(sys.argv[1])))"
    )

    def run(home: Path) -> subprocess.Popen[bytes]:
        env = os.environ | {"SAFENEURON_HOME": str(home), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", code, json.dumps(request)], env=env)

    homes = [tmp_path / "whole", tmp_path / "killed"]
    assert run(homes[0]).wait() == 0
    process = run(homes[1])
    total = math.ceil(9 * 20 / 2)
    journal = None
    while process.poll() is None:
        journal = next((homes[1] / "store" / "unfinished").glob(f"*/{JUDGED}"), None)
        if journal and journal.read_bytes().count(b"\n") >= moment * total:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not list((homes[1] / "store").glob("attack/*/manifest.json"))
    assert journal is not None
    before = journal.read_text("utf-8").splitlines()
    assert run(homes[1]).wait() == 0
    results = []
    for home in homes:
        (path,) = (home / "store").glob("attack/*/attack.json")
        stored = json.loads(path.read_text("utf-8"))
        results.append({k: stored[k] for k in ("settings", "answers", "prompts", "mask")})
    assert results[0] == results[1]
    assert moment * total <= len(before) < total
    assert not list((homes[1] / "store" / "unfinished").glob("attack-*/"))
