"""Looking for the neurons again while a model trains, as attackers would (paper Sec. 3.2).

The searches are the attacks' own: identification round after round on what is left, the
single neuron's ranking, NeuroStrike's probes; and NeuronGuard's probe. Only their prompts are
others: those of training, never those that an attack is measured on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from analysis.align_requests import AlignRequest
from analysis.attacks.context import AttackContext
from analysis.attacks.neurostrike import neurostrike
from analysis.attacks.single_neuron import rank
from analysis.made_pairs import allowed_prompts
from analysis.requests import AttackRequest
from analysis.robustness import Side
from analysis.scores.neurostrike import probe_weights
from analysis.select import Selection
from toolkit.capture.base import batches, pooled_activations, render
from toolkit.capture.hooks import HooksBackend
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo
from toolkit.models.layout import is_conv1d
from toolkit.models.load import LoadedModel
from toolkit.neurons import NeuronSet
from toolkit.progress import silent
from toolkit.prompt_sets import PromptSet
from toolkit.train.finding import Candidate, Finder, Found
from toolkit.train.recipes import Mixture

SIDES: tuple[Side, Side] = ("harmful", "harmless")
# NeuronGuard takes the 5 % largest positive weights of each layer's probe (2608.23959).
PROBE_SHARE = 0.05
PROBE_EPOCHS = 500  # a tenth of NeuroStrike's: the ranking has settled, and it is run often
# RSN-Tune's foundation: 2,000 of 14,336 neurons a layer, as its authors' script has it.
FOUNDATION_SHARE = 0.14


def make_finder(
    request: AlignRequest, loaded: LoadedModel, mask: MaskFile | None, mixture: Mixture
) -> Finder:
    """What a recipe that looks again calls every so many steps.

    Args:
        request: the run; its prompts, their first few on either side, are searched on.
        loaded: the model, which trains between calls.
        mask: says how neurons are found; None where the recipe has none.
        mixture: how far ``adaptive`` plays the attacker.
    """
    prompts = {
        side: allowed_prompts(request, getattr(request, side))[: mixture.prompts] for side in SIDES
    }
    asked = AttackRequest(model=request.model, batch_size=16, dtype=request.dtype)
    if mask is None:
        mask = _no_mask(loaded, prompts)

    def find() -> Found:
        # What one context measures is remembered, and the model has moved since.
        context = AttackContext(loaded, mask, asked, prompts, silent)
        with _searching(loaded, request.dtype):
            if request.recipe == "neuronguard":
                probed = probe(context)
                return Found((probed,), probed)
            return play_attacker(context, mixture)

    return find


def play_attacker(context: AttackContext, mixture: Mixture) -> Found:
    """What an attacker who looks again removes, round by round, and what one would hold."""
    removed = NeuronSet.empty(context.widths)
    rounds: list[NeuronSet] = []
    for _ in range(mixture.search_rounds):
        new = context.find(removed) - removed
        if not len(new) and rounds:
            break
        rounds.append(new)
        removed = removed | new
    head = context.find(NeuronSet.empty(context.widths), Selection(top=mixture.head))
    candidates = tuple(
        Candidate(found.layer, found.index, found.activation)
        for found in rank(context, mixture.candidates)
    )
    probed = None
    if mixture.probe:
        (planned,) = neurostrike(context)
        probed = planned.plan.interventions[0].neurons
    return Found(tuple(rounds), head, candidates, probed)


def probe(context: AttackContext) -> NeuronSet:
    """NeuronGuard's neurons: the largest positive weights of a probe in each layer."""
    backend = HooksBackend(context.loaded)
    rows, labels = [], []
    for side in SIDES:
        for batch in context.batches(context.finding[side].texts):
            rows.append(pooled_activations(backend, batch, context.position, context.widths))
            labels += [float(side == "harmful")] * len(batch.rows)
    values = torch.from_numpy(np.concatenate(rows)).float()
    masks = []
    for layer in torch.split(values, context.widths, dim=1):
        weights = probe_weights(layer, torch.tensor(labels), PROBE_EPOCHS).numpy()
        masks.append(_largest(weights, round(PROBE_SHARE * len(weights))) & (weights > 0))
    return NeuronSet.from_masks(masks)


def foundation_neurons(loaded: LoadedModel, prompts: PromptSet, batch_size: int = 16) -> NeuronSet:
    """Neurons that all text needs, which RSN-Tune leaves alone (Zhao et al., ICLR 2025).

    A neuron's importance for a prompt is how far the MLP's output moves without it,
    ``|activation| * ||its column of down||``, at the tokens of the message together; those
    count that are in the top share of their layer for every prompt.
    """
    widths = loaded.layout.widths
    columns = _column_norms(loaded)
    kept = [np.ones(width, dtype=np.bool_) for width in widths]
    backend = HooksBackend(loaded)
    rendered = [render(loaded.tokenizer, text) for text in prompts.texts]
    for batch in batches(rendered, batch_size, loaded.tokenizer.pad_token_id):
        batch = batch.to(loaded.device)
        own = batch.own

        def sink(layer: int, activations: torch.Tensor, own: torch.Tensor = own) -> None:
            energy = (activations.float() * own[..., None]).square().sum(dim=1).sqrt()
            count = round(FOUNDATION_SHARE * widths[layer])
            for importance in (energy * columns[layer]).cpu().numpy():
                kept[layer] &= _largest(importance, count)

        backend.run(batch, sink)
    return NeuronSet.from_masks(kept)


def _column_norms(loaded: LoadedModel) -> list[torch.Tensor]:
    """Length of every neuron's column of the down projection, ``[width]`` a layer."""
    norms = []
    for layer in range(len(loaded.layout.sites)):
        down: Any = loaded.layout.down(loaded.model, layer)
        norms.append(down.weight.detach().float().norm(dim=1 if is_conv1d(down) else 0))
    return norms


def _largest(values: "np.ndarray[Any, Any]", count: int) -> "np.ndarray[Any, Any]":
    chosen = np.zeros(len(values), dtype=np.bool_)
    chosen[np.argsort(-values, kind="stable")[:count]] = True
    return chosen


def _no_mask(loaded: LoadedModel, prompts: dict[Side, PromptSet]) -> MaskFile:
    """An empty mask, for searches that need none but read how one was made."""
    return MaskFile.of(
        NeuronSet.empty(loaded.layout.widths),
        loaded.info,
        MethodInfo(name="none"),
        MaskPrompts(harmful=prompts["harmful"].info(), harmless=prompts["harmless"].info()),
    )


@contextmanager
def _searching(loaded: LoadedModel, dtype: str) -> Iterator[None]:
    """Evaluation mode, the run's arithmetic, and no gradients of weights."""
    model = loaded.model
    training = model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    model.eval()
    half = dtype == "bfloat16"
    try:
        with torch.autocast(loaded.device.type, torch.bfloat16, enabled=half):
            yield
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
