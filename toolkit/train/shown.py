"""Which pairs an adaptive run is shown: how many that teach refusing, in which words.

Whether a pair teaches refusing is read off its chosen answer, so that it holds for pairs of
any origin.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice

from toolkit.judge.refusal import judge_refusal
from toolkit.train.frames import framed
from toolkit.train.pairs import PreferencePair
from toolkit.train.recipes import Mixture


def shown_pairs(
    pairs: Sequence[PreferencePair],
    mixture: Mixture,
    count: int,
    seed: int,
    fits: Callable[[PreferencePair], bool],
) -> list[PreferencePair]:
    """The pairs of a run, a row for each time that one is shown.

    Pairs of a kind are shown equally often, or once more, in an order that is drawn. A pair
    whose frame makes it longer than the run takes is shown without.

    Args:
        pairs: what there is, in order.
        mixture: its ``refusing`` and ``frames``; with neither the pairs stay as they are.
        count: rows, steps times pairs a step.
        seed: of the frames and the order.
        fits: whether a pair is short enough.
    """
    if mixture.refusing is None and not mixture.frames:
        return list(pairs)
    generator = random.Random(f"{seed} shown")
    refusing: list[PreferencePair] = []
    answering: list[PreferencePair] = []
    for pair in pairs:
        refused = judge_refusal(pair.chosen).verdict == "refused"
        (refusing if refused else answering).append(pair)
    # With pairs of one kind alone there is nothing to weigh.
    if mixture.refusing is None or not refusing or not answering:
        rows = _cycled(pairs, count)
    else:
        wanted = round(count * mixture.refusing)
        rows = _cycled(refusing, wanted) + _cycled(answering, count - wanted)
    generator.shuffle(rows)
    shown = []
    for pair in rows:
        dressed = replace(pair, prompt=framed(pair.prompt, mixture.frames, generator))
        shown.append(dressed if fits(dressed) else pair)
    return shown


def _cycled(pairs: Sequence[PreferencePair], count: int) -> list[PreferencePair]:
    return list(islice(cycle(pairs), count))
