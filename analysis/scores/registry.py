"""Every score under its name: what it reads, where it comes from, the function itself.

A score of one's own is a function under :func:`score`, found by ``identify`` and put on
the table beside the rest::

    from analysis.scores import score

    @score("spread", reads="activations")
    def spread(harmful, harmless):
        return harmful.std(axis=0) - harmless.std(axis=0)

A package may bring scores by naming the module that holds them as an entry point of the
group ``safeneuron.scores``.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from toolkit.capture.moments import Vector
from toolkit.errors import SafeNeuronError
from toolkit.files import sha256_text

Reads = Literal[
    "moments",
    "activations",
    "projections",
    "gradients",
    "direction",
    "contributions",
    "wanda",
    "snip",
    "change",
]
"""What a score's function is given, for one layer of ``width`` neurons at a time.

Two arguments, the harmful side and the harmless one:

- ``moments``: a :class:`~toolkit.capture.moments.Moments`; means at the token position.
- ``activations``: ``[prompts, width]`` at the token position.
- ``projections``: a list, gate and up (or the one there is), of ``[prompts, width]``: the
  largest output over the message's own tokens.
- ``gradients``: a :class:`~toolkit.capture.token_means.TokenMeans`.

One argument:

- ``direction``: ``[width]``, each output column's dot product with the unit direction
  that separates the two sides in the residual stream.
- ``contributions``: ``[prompts, width]`` on one prompt set, the norm of what the neuron adds
  to its layer's output over the message's own tokens.
- ``wanda``, ``snip``: ``[matrices, width]`` on one prompt set and the model's answers, the
  importance of the neuron's weights in each of its matrices, summed.
- ``change``: ``[width]`` on one prompt set, the root mean square by which the neuron differs
  between two models on the answers of the first.
"""
CONTRASTS: tuple[Reads, ...] = ("moments", "activations", "projections", "gradients", "direction")
"""Kinds that hold harmful prompts against harmless ones; the rest look at one set."""
BY_PROMPT: tuple[Reads, ...] = ("moments", "activations")
"""Kinds that can be drawn again prompt by prompt, for bootstrap intervals."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = ("utility", "delta", "layer", "neuron")
GROUP = "safeneuron.scores"
BUILT_IN = "analysis.scores."

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


@dataclass(frozen=True)
class Score:
    """A number for every neuron, under a name.

    Args:
        name: lower-case letters, digits and ``_``.
        reads: what ``function`` is given.
        function: one layer's evidence to ``[width]`` numbers, larger for more of a safety neuron.
        title: what it is, in a few words with its unit.
        source: the paper's section or equation.
        tau: the threshold its source uses; None where it ranks.
        neutral: its value for a neuron that says nothing; a share never goes below it.
        rising: choose only neurons whose mean is higher on harmful prompts.
        p_value: the same evidence to one-sided p-values ``[width]``.
    """

    name: str
    reads: Reads
    function: Callable[..., Vector]
    title: str = ""
    source: str = ""
    tau: float | None = None
    neutral: float = 0.0
    rising: bool = False
    p_value: Callable[..., Vector] | None = None

    @property
    def contrast(self) -> bool:
        """Whether it holds two prompt sets against each other."""
        return self.reads in CONTRASTS

    @property
    def digest(self) -> str:
        """Names the function's text, so that a changed function is another score."""
        return sha256_text("\n".join(_text(f) for f in (self.function, self.p_value) if f))[:16]


def _text(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt, or not written in Python
        code = getattr(function, "__code__", None)
        return repr(function) if code is None else repr((code.co_code, code.co_consts))


_REGISTERED: dict[str, Score] = {}
_asked_packages = False


def score(
    name: str,
    *,
    reads: Reads,
    title: str = "",
    source: str = "",
    tau: float | None = None,
    neutral: float = 0.0,
    rising: bool = False,
    p_value: Callable[..., Vector] | None = None,
) -> Callable[[AnyFunction], AnyFunction]:
    """Register a function as a score; the arguments are those of :class:`Score`.

    Registering a name of one's own again replaces it, as a notebook does.

    Raises:
        SafeNeuronError: the name is not one, or is one of the built-in scores; or there
            is no such evidence.
    """
    if not NAME.fullmatch(name) or name in RESERVED:
        raise SafeNeuronError(
            f"{name!r} can't name a score: use lower-case letters, digits and _, and none of "
            f"{', '.join(RESERVED)}"
        )
    if reads not in get_args(Reads):
        raise SafeNeuronError(
            f"score {name} reads {reads!r}, which is none of {', '.join(get_args(Reads))}"
        )

    def register(function: AnyFunction) -> AnyFunction:
        known = _REGISTERED.get(name)
        if known is not None and known.function.__module__.startswith(BUILT_IN):
            raise SafeNeuronError(f"there is a score {name} already; give yours another name")
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        _REGISTERED[name] = Score(
            name, reads, function, title or summary, source, tau, neutral, rising, p_value
        )
        return function

    return register


def all_scores() -> dict[str, Score]:
    """Every score, the built-in ones first, then those of installed packages and one's own."""
    global _asked_packages  # noqa: PLW0603
    import analysis.scores  # noqa: F401  the built-in ones register themselves

    if not _asked_packages:
        _asked_packages = True
        for point in entry_points(group=GROUP):
            try:
                point.load()
            except (ImportError, AttributeError) as error:
                raise SafeNeuronError(
                    f"the scores of {point.value} can't be loaded ({error}); reinstall or remove "
                    "that package"
                ) from error
    return dict(_REGISTERED)


def find_score(name: str) -> Score:
    """The score of a name.

    Raises:
        SafeNeuronError: there is none.
    """
    known = all_scores()
    if name not in known:
        raise SafeNeuronError(f"no score {name!r}; choose one of {', '.join(known)}")
    return known[name]


def evaluate(
    function: Callable[..., Vector],
    name: str,
    sides: Sequence[Sequence[Any]],
    widths: Sequence[int],
) -> Vector:
    """Run a score's function layer by layer, ``[neurons]``.

    Args:
        function: of the score, or its p-value.
        name: of the score, for errors.
        sides: one or two sequences of one piece of evidence a layer.
        widths: neurons in each layer.

    Raises:
        SafeNeuronError: the function gave something else than one number a neuron.
    """
    layers: list[Vector] = []
    for layer, width in enumerate(widths):
        if not width:
            continue
        values = np.asarray(function(*(side[layer] for side in sides)), dtype=np.float64)
        if values.shape != (width,):
            raise SafeNeuronError(
                f"score {name} gave shape {values.shape} for layer {layer}; it must give one "
                f"number for each of its {width} neurons"
            )
        if np.isnan(values).any():
            neuron = int(np.flatnonzero(np.isnan(values))[0])
            raise SafeNeuronError(
                f"score {name} is NaN for {int(np.isnan(values).sum())} of the {width} neurons of "
                f"layer {layer}, neuron {neuron} first; give neurons that say nothing a number"
            )
        layers.append(values)
    return np.concatenate(layers) if layers else np.empty(0)
