"""Do the backends give the same numbers on this model, and is the layout right?

What ``safeneuron doctor`` prints. Silent wrong activations are a known class of fault in
interpretability libraries, and they depend on the architecture; so anyone can check the
model at hand.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.capture.backends import make_backend
from toolkit.capture.base import Batch, CaptureBackend, Rendered, batches, render
from toolkit.capture.hooks import HooksBackend
from toolkit.errors import SafeNeuronError
from toolkit.intervene import Intervention, intervene, write_into_weights
from toolkit.models.load import LoadedModel
from toolkit.neurons import NeuronSet

TOLERANCE = 1e-5
"""Greatest relative difference that counts as the same; rounding of float32 is about 1e-7
an operation, and the libraries order their operations differently."""
LAYOUT = "layout"
LAYOUT_SHARE = 0.05

# What a library raises about a model it can load but not run. Memory that runs out is a
# RuntimeError too, and its first line says so.
RUN_ERRORS = (ValueError, KeyError, AttributeError, TypeError, RuntimeError, IndexError)


@dataclass(frozen=True)
class Parity:
    """How one backend, or the layout, compares with the reference.

    Args:
        backend: its name; ``layout`` for the check of :func:`check_layout`.
        agrees: whether all neurons are there and within :data:`TOLERANCE`.
        difference: the greatest over layers of max|a - b| / max|a|, where a is the
            reference; None when the backend could not be run.
        neurons: how many neurons the backend gave, over all layers.
        expected: how many the model has.
        seconds: what it took, without loading the model.
        reason: one line on why it does not agree, else None.
    """

    backend: str
    agrees: bool
    difference: float | None
    neurons: int
    expected: int
    seconds: float
    reason: str | None = None


def compare_backends(
    loaded: LoadedModel, texts: Sequence[str], names: Sequence[str], batch_size: int = 8
) -> list[Parity]:
    """Hold backends against plain hooks, then check the layout.

    The whole activation tensors are compared, on every token but padding. Memory holds
    the reference's activations of one batch at a time.

    Args:
        loaded: the model, in float32 (the tolerance is of float32).
        texts: some prompts; a handful of different lengths is enough.
        names: of the backends to check.
        batch_size: prompts at a time.

    Returns:
        One :class:`Parity` for each name, in order, and a last one for the layout. A
        backend that does not support the model is reported with the reason, not raised.

    Raises:
        SafeNeuronError: no prompts, or one that can't be rendered.
    """
    rendered = _render(loaded, texts)
    found = batches(rendered, batch_size, loaded.tokenizer.pad_token_id)
    prepared = [batch.to(loaded.device) for batch in found]
    return [*(_compare(loaded, name, prepared) for name in names), check_layout(loaded, texts)]


def check_layout(loaded: LoadedModel, texts: Sequence[str], seed: int = 0) -> Parity:
    """Zero a random 5 % of the neurons twice over, and compare the logits.

    Once in the running model, at the site where activations are captured; once in the
    weights of a copy, where the layout says they are. Equal logits mean that the neurons
    that are captured are the neurons whose weights get edited and frozen.

    Args:
        loaded: the model.
        texts: some prompts.
        seed: of the random set.
    """
    batch = next(batches(_render(loaded, texts), len(texts), loaded.tokenizer.pad_token_id))
    batch = batch.to(loaded.device)
    widths = loaded.layout.widths
    generator = np.random.default_rng(seed)
    neurons = NeuronSet(
        widths,
        {
            layer: generator.permutation(width)[: max(1, round(LAYOUT_SHARE * width))].tolist()
            for layer, width in enumerate(widths)
        },
    )
    zeroed = Intervention(neurons)
    start = time.perf_counter()
    plain = _logits(loaded.model, batch)
    with intervene(loaded.model, loaded.layout, zeroed):
        hooked = _logits(loaded.model, batch)
    edited = copy.deepcopy(loaded.model)
    write_into_weights(edited, loaded.layout, zeroed)
    difference = _relative((hooked - _logits(edited, batch)).abs().max(), hooked.abs().max())
    changed = bool((hooked != plain).any())
    reason = None
    if not difference <= TOLERANCE:
        reason = (
            f"zeroing {len(neurons)} neurons while running and in the weights gives logits that "
            f"differ by {difference:.1e}; this version misreads the architecture"
        )
    elif not changed:
        reason = f"zeroing {len(neurons)} neurons changes no logit; the site is not on the path"
    return Parity(
        LAYOUT,
        reason is None,
        difference,
        sum(widths),
        sum(widths),
        time.perf_counter() - start,
        reason,
    )


def _render(loaded: LoadedModel, texts: Sequence[str]) -> list[Rendered]:
    if not texts:
        raise SafeNeuronError("no prompts to compare the backends on; give at least one")
    return [render(loaded.tokenizer, text) for text in texts]


def _compare(loaded: LoadedModel, name: str, prepared: Sequence[Batch]) -> Parity:
    expected = sum(loaded.layout.widths)
    seconds = 0.0
    try:
        backend = make_backend(name, loaded)
        reference = HooksBackend(loaded)
        comparison = _Comparison(loaded.layout.widths)
        for batch in prepared:
            comparison.remember(reference, batch)
            start = time.perf_counter()
            comparison.compare(backend, batch)
            seconds += time.perf_counter() - start
    except SafeNeuronError as error:
        return Parity(name, False, None, 0, expected, seconds, str(error))
    except RUN_ERRORS as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        failure = f"backend {name} fails: {type(error).__name__}: {line}; use --backend torch"
        return Parity(name, False, None, 0, expected, seconds, failure)
    difference = comparison.difference
    neurons = sum(comparison.widths.values())
    reason: str | None = None
    if neurons != expected:
        reason = f"backend {name} gives {neurons} of {expected} neurons; use --backend torch"
    elif not difference <= TOLERANCE:  # NaN fails this too
        reason = (
            f"backend {name} differs by {difference:.1e}, more than {TOLERANCE:g}; "
            "use --backend torch"
        )
    return Parity(name, reason is None, difference, neurons, expected, seconds, reason)


class _Comparison:
    """Greatest differences of each layer, over batches."""

    def __init__(self, expected: Sequence[int]) -> None:
        self.widths: dict[int, int] = {}
        self._apart = [torch.zeros(()) for _ in expected]
        self._scale = [torch.zeros(()) for _ in expected]
        self._reference: dict[int, Tensor] = {}

    def remember(self, backend: CaptureBackend, batch: Batch) -> None:
        """Keep the reference's activations of one batch, ``[real tokens, width]`` a layer."""
        real = batch.attention.bool()

        def keep(layer: int, activations: Tensor) -> None:
            self._reference[layer] = activations[real]

        backend.run(batch, keep)

    def compare(self, backend: CaptureBackend, batch: Batch) -> None:
        """Run another backend on the batch that was remembered."""
        real = batch.attention.bool()
        seen: list[int] = []

        def hold_against(layer: int, activations: Tensor) -> None:
            seen.append(layer)
            self.widths[layer] = activations.shape[-1]
            wanted = self._reference[layer]
            given = activations[real]
            if given.shape != wanted.shape:
                return  # reported by the count of neurons
            apart = (given - wanted).abs().amax().cpu()
            # torch's maximum keeps NaN, where Python's would drop it.
            self._apart[layer] = torch.maximum(self._apart[layer], apart)
            self._scale[layer] = torch.maximum(self._scale[layer], wanted.abs().amax().cpu())

        backend.run(batch, hold_against)
        if sorted(seen) != sorted(self._reference):
            raise SafeNeuronError(
                f"backend {backend.name} gives layers {seen[:40]}, each is wanted once; "
                "use --backend torch"
            )

    @property
    def difference(self) -> float:
        """The greatest relative difference of all layers; NaN where one is."""
        each = [_relative(a, s) for a, s in zip(self._apart, self._scale, strict=True)]
        return float(torch.tensor(each, dtype=torch.float64).amax())


def _relative(apart: Tensor, scale: Tensor) -> float:
    if apart == 0:
        return 0.0
    return float(apart / scale)  # infinite where the reference is all zeros


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits on every token but padding, ``[real tokens, vocabulary]``."""
    with torch.inference_mode():
        output = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
    logits = output.logits[batch.attention.bool()]
    assert isinstance(logits, Tensor)
    return logits
