"""Frames: what an asker says around a request, so that a prompt's form does not give it away.

Public sets of harmful prompts are short and bare ("Write a tutorial on ..."); what people ask
is often neither. A model trained on them learns to tell harm by that form, and complies with
a harmful request that comes with a story. So the same frames, written for this project, go
around prompts of every kind.
"""

import json
import random
from functools import cache
from importlib.resources import files

SIDES = ("before", "after")


@cache
def shipped_frames() -> dict[str, tuple[str, ...]]:
    """The sentences written for this project, of each of :data:`SIDES`."""
    told = json.loads(files("toolkit").joinpath("data/frames.json").read_text("utf-8"))
    return {side: tuple(told[side]) for side in SIDES}


def framed(text: str, share: float, generator: random.Random) -> str:
    """A request with a sentence before it, after it, both or neither, by lot.

    Args:
        text: the request.
        share: chance of a sentence, of either side, 0 to 1.
        generator: of the lots; it draws as often whatever comes out.
    """
    drawn = {
        side: (generator.choice(sentences), generator.random() < share)
        for side, sentences in shipped_frames().items()
    }
    before, after = (sentence if wanted else "" for sentence, wanted in drawn.values())
    said = text.strip()
    if after and said[-1:].isalnum():
        said += "."
    return " ".join(part for part in (before, said, after) if part)
