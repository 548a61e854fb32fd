"""A neuron's page against independent computations, and read again without a model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.identify import identify
from analysis.neuron import NeuronRequest, neuron_page
from analysis.requests import IdentifyRequest
from tests.tiny import HARMFUL, HARMLESS, save_tiny
from toolkit.capture.base import render
from toolkit.errors import SafeNeuronError
from toolkit.models.load import load_model
from toolkit.neuron_view import SINK, nearest, trace_neuron, unembedded

LAYER, NEURON = 1, 23


@pytest.fixture(params=["llama", "gpt2"])
def request_(request: pytest.FixtureRequest, tmp_path: Path) -> NeuronRequest:
    folder = save_tiny(tmp_path / "model", request.param)
    for name, prompts in (("harmful", HARMFUL[:7]), ("harmless", HARMLESS[:6])):
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts), "utf-8")
    return NeuronRequest(
        model=str(folder),
        harmful=str(tmp_path / "harmful.json"),
        harmless=str(tmp_path / "harmless.json"),
        position="mean",
        layer=LAYER,
        neuron=NEURON,
        prompts_shown=3,
        tokens_shown=4,
        neighbours=5,
    )


def identified(request: NeuronRequest, **values: object) -> IdentifyRequest:
    kept = request.model_dump(include=set(IdentifyRequest.model_fields))
    return IdentifyRequest.model_validate(kept | values)


def test_the_page_is_what_one_computes_by_hand(request_: NeuronRequest) -> None:
    loaded = load_model(request_.model, device="cpu")
    gpt2 = loaded.model.config.model_type == "gpt2"
    name = "transformer.h.{}.mlp.c_proj" if gpt2 else "model.layers.{}.mlp.down_proj"
    columns = [loaded.model.get_submodule(name.format(n)).weight.detach() for n in range(3)]
    columns = [c if gpt2 else c.T for c in columns]
    found = identify(identified(request_, method="es", top=0.3, also=["auc"]))
    page = neuron_page(request_)
    assert not page.reused  # the traces still had to be measured

    table = pd.read_parquet(found.entry.file("scores.parquet"))
    row = table[(table["layer"] == LAYER) & (table["neuron"] == NEURON)].iloc[0]
    by_name = {one.score: one for one in page.scores}
    assert set(by_name) == {"es", "sas", "t", "auc"}
    for score, one in by_name.items():
        assert one.value == pytest.approx(row[score])
        assert one.rank == table[score].rank(ascending=False, method="min")[row.name]
        lower = (table[score] < row[score]).sum()
        assert one.percentile == pytest.approx(100 * lower / (len(table) - 1))
        own = table[table["layer"] == LAYER][score]
        assert one.rank_in_layer == own.rank(ascending=False, method="min")[row.name]
    assert by_name["t"].p == pytest.approx(row["t_p"])
    assert by_name["sas"].p is None
    (mask,) = page.masks
    assert mask.member == ((LAYER, NEURON) in found.mask.neuron_set())
    assert mask.entry == found.entry.key

    # Every prompt by itself, from the module's own inputs.
    traces: list[tuple[float, str, int, int]] = []
    measured = page.measured
    for side, texts in (("harmful", HARMFUL[:7]), ("harmless", HARMLESS[:6])):
        means = []
        for index, text in enumerate(texts):
            shown = render(loaded.tokenizer, text)
            seen: list[torch.Tensor] = []
            module = loaded.model.get_submodule(name.format(LAYER))
            handle = module.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
            with torch.no_grad():
                loaded.model(torch.tensor([shown.ids]))
            handle.remove()
            values = seen[0].reshape(len(shown.ids), -1)[:, NEURON].double().numpy()
            own = np.array(shown.own)
            means.append(values[own].mean())
            counted = np.where(own, values, -np.inf)
            traces.append((counted.max(), side, index, int(counted.argmax())))
        told = measured.distributions[side]
        np.testing.assert_allclose(told.values, means, rtol=1e-4, atol=1e-6)
        assert told.mean == pytest.approx(np.mean(means), rel=1e-4)
        assert told.std == pytest.approx(np.std(means, ddof=1), rel=1e-4)
        assert told.quantiles["0.5"] == pytest.approx(np.median(means), rel=1e-4)
    # Prompts that begin alike tie to rounding, so each is held to its own trace.
    own_trace = {(side, index): (value, token) for value, side, index, token in traces}
    best = sorted((value for value, *_ in traces), reverse=True)[:3]
    named = [(strong.side, strong.index) for strong in measured.strongest]
    assert len(set(named)) == 3
    for strong, value in zip(measured.strongest, best, strict=True):
        side, index = strong.side, strong.index
        own_value, token = own_trace[side, index]
        assert strong.token == token
        assert strong.activation == pytest.approx(own_value, rel=1e-4)
        assert own_value == pytest.approx(value, rel=1e-4)
        assert strong.tokens[token].left_out is None
        assert strong.tokens[0].left_out == "template"  # <|im_start|>, the BOS token
        message = "".join(t.text for t in strong.tokens if t.left_out is None)
        assert message.strip() == (HARMFUL if side == "harmful" else HARMLESS)[index]

    column = columns[LAYER][NEURON]
    logits = (loaded.model.get_output_embeddings().weight.detach() @ column).double().numpy()
    np.testing.assert_allclose(unembedded(loaded, LAYER, NEURON), logits, rtol=1e-3, atol=1e-5)
    order = np.argsort(-logits)
    assert [effect.id for effect in measured.promoted] == order[:4].tolist()
    assert [effect.id for effect in measured.suppressed] == order[::-1][:4].tolist()
    assert measured.promoted[0].token == loaded.tokenizer.decode([int(order[0])])

    everyone = torch.cat(columns)
    cosines = torch.nn.functional.cosine_similarity(everyone, column[None], dim=1)
    width = len(columns[0])
    cosines[LAYER * width + NEURON] = -2
    top = cosines.topk(5)
    assert [n.layer * width + n.neuron for n in measured.neighbours] == top.indices.tolist()
    np.testing.assert_allclose([n.cosine for n in measured.neighbours], top.values, rtol=1e-4)


def test_a_kept_page_is_read_without_torch(request_: NeuronRequest) -> None:
    page = neuron_page(request_)
    code = (
        "import sys\n"
        "from analysis.neuron import NeuronRequest, neuron_page\n"
        f"page = neuron_page(NeuronRequest.model_validate_json({request_.model_dump_json()!r}))\n"
        "assert page.reused and 'torch' not in sys.modules\n"
        "print(page.model_dump_json(by_alias=True))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == page.model_dump(mode="json", by_alias=True) | {"reused": True}


def test_sinks_and_first_tokens_do_not_count(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    loaded = load_model(str(folder), device="cpu")
    shown = render(loaded.tokenizer, HARMFUL[0])
    (word,) = loaded.tokenizer(" steal")["input_ids"]
    place = shown.ids.index(word)
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight[word] *= 300
    (trace,) = trace_neuron(loaded, HARMFUL[:1], LAYER, NEURON)
    with torch.no_grad():
        states = loaded.model(torch.tensor([shown.ids]), output_hidden_states=True).hidden_states
    # After each layer; the last state of all is normalised.
    lengths = torch.stack([state[0].norm(dim=-1) for state in states[1:-1]])
    massive = (lengths > SINK * lengths.quantile(0.5, dim=1, keepdim=True)).any(dim=0)
    assert massive[place]
    assert trace.sinks[place]
    assert not trace.counted[place]
    assert trace.counted.sum() == sum(shown.own) - 1

    loaded.tokenizer.chat_template = None
    (bare,) = trace_neuron(loaded, ["poison a phone"], LAYER, NEURON)
    assert bare.own[0]
    assert not bare.counted[0], "the first token is left out with no BOS too"


def test_neighbours_without_a_direction(tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny(tmp_path / "model")), device="cpu")
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.down_proj.weight[:, 5] = 0.0
    found = nearest(loaded, 0, 5, 3)
    assert len(found) == 3
    assert all(cosine == 0.0 for _, _, cosine in found)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"layer": 3}, "layer 3 is out of range: the model has layers 0 to 2"),
        ({"neuron": 5000}, "neuron 5000 is out of range 0 to"),
        ({"also": ["magic"]}, "no score 'magic'"),
    ],
)
def test_neurons_that_are_not_there(
    request_: NeuronRequest, values: dict[str, object], why: str
) -> None:
    with pytest.raises(SafeNeuronError, match=why):
        neuron_page(request_.model_copy(update=values))
