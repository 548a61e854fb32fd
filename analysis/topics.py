"""A set of safety neurons for each topic of harmful prompts (SafeNeuron, Sec. 4.5).

The paper takes the ten topics of HarmfulQA; any prompt set whose prompts have categories
will do, such as StrongREJECT with its six. Each topic's result is stored by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from analysis.requests import IdentifyRequest
from analysis.store import Store
from analysis.study import Identified, identify
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile
from toolkit.models.sources import resolve
from toolkit.neurons import NeuronSet
from toolkit.progress import Progress, silent
from toolkit.prompt_sets import PromptSet
from toolkit.prompts import read_prompts

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel

SMALLEST = 10
"""Fewest prompts of a topic: fewer say little of a mean, and nothing of a variance."""


@dataclass(frozen=True)
class Topics:
    """The safety neurons of each topic.

    Args:
        masks: topic -> mask.
        keys: topic -> key of its stored result.
        left_out: topics with too few prompts -> how many they have.
        reused: whether no model had to be run.
        shared_control: whether all topics were held against the same harmless prompts.
    """

    masks: dict[str, MaskFile]
    keys: dict[str, str]
    left_out: dict[str, int]
    reused: bool
    shared_control: bool

    def sets(self) -> dict[str, NeuronSet]:
        """Topic -> neurons."""
        return {topic: mask.neuron_set() for topic, mask in self.masks.items()}


def identify_topics(
    request: IdentifyRequest,
    progress: Progress = silent,
    store: Store | None = None,
    smallest: int = SMALLEST,
    shared_control: bool = False,
) -> Topics:
    """Identify once for each category of the request's harmful prompts.

    By default each topic has harmless prompts of its own, every n-th of the request's: held
    against the same ones, topics would share what is particular to those, and overlap more
    than chance without any neuron that is about harm.

    Args:
        request: as for one identification; its harmful prompts have categories.
        progress: hears of prompts captured, a stage a topic.
        store: where results are kept.
        smallest: topics with fewer harmful prompts are left out.
        shared_control: hold all topics against the same harmless prompts.

    Raises:
        SafeNeuronError: fewer than two topics have enough prompts, a topic's harmless
            prompts are too few, or no neuron passes the selection for one of them.
    """
    store = store or Store()
    found = read_prompts(request.harmful).by_category()
    topics = {name: len(prompts) for name, prompts in found.items() if len(prompts) >= smallest}
    left_out = {name: len(prompts) for name, prompts in found.items() if name not in topics}
    if len(topics) < 2:
        raise SafeNeuronError(
            f"{request.harmful} has {len(topics)} topic{'' if len(topics) == 1 else 's'} of "
            f"{smallest} prompts or more; overlap across topics needs at least two"
        )
    load = _loader(request)
    masks, keys, reused = {}, {}, True
    for place, topic in enumerate(topics):
        part = request.harmless if shared_control else f"{request.harmless}[{place}::{len(topics)}]"
        _enough(read_prompts(part), smallest)
        asked = request.model_copy(
            update={"harmful": f"{request.harmful}#{topic}", "harmless": part}
        )
        made = _identify(asked, topic, _staged(progress, topic), store, load)
        masks[topic], keys[topic] = made.mask, made.entry.key
        reused = reused and made.reused
    return Topics(masks, keys, left_out, reused, shared_control)


def _identify(
    asked: IdentifyRequest,
    topic: str,
    progress: Progress,
    store: Store,
    load: "Callable[[], LoadedModel]",
) -> Identified:
    try:
        return identify(asked, progress, store, load)
    except SafeNeuronError as error:
        raise SafeNeuronError(f"topic {topic}: {error}") from error


def _enough(harmless: PromptSet, smallest: int) -> None:
    if len(harmless) < smallest:
        raise SafeNeuronError(
            f"{harmless.name} leaves {len(harmless)} harmless prompts to a topic, fewer than "
            f"{smallest}; give more, or share one control between the topics"
        )


def _loader(request: IdentifyRequest) -> "Callable[[], LoadedModel]":
    """Loads the model at the first call, and keeps it."""

    @cache
    def load() -> "LoadedModel":
        import torch

        from toolkit.models.load import load_model

        return load_model(resolve(request.model), dtype=getattr(torch, request.dtype))

    return load


def _staged(progress: Progress, topic: str) -> Progress:
    """The same progress, with a stage for the topic."""

    def told(stage: str, done: int, total: int) -> None:
        progress(f"{stage}: {topic}", done, total)

    return told
