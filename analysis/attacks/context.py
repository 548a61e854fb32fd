"""What the ways to attack share: the model, the mask, the prompts and what was measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import or_

import pandas as pd

from analysis.requests import AttackRequest
from analysis.robustness import Setting, Side
from analysis.scores.table import ALWAYS, score_table
from analysis.select import Selection, select_parts
from toolkit.capture.base import Batch, Position, batches, capture_moments, render
from toolkit.capture.hooks import HooksBackend
from toolkit.errors import SafeNeuronError
from toolkit.intervene import Intervention
from toolkit.masks import MaskFile
from toolkit.models.load import LoadedModel
from toolkit.neurons import NeuronSet
from toolkit.progress import Progress
from toolkit.prompt_sets import PromptSet
from toolkit.rows import Plan, RowPlans


@dataclass(frozen=True)
class Planned:
    """A setting and what it does to the model."""

    setting: Setting
    plan: Plan


def removal(name: str, neurons: NeuronSet, **facts: str | float | int) -> Planned:
    """A setting that zeroes a set."""
    setting = Setting(name=name, neurons=len(neurons), parameters=facts)
    return Planned(setting, Plan((Intervention(neurons),)))


@dataclass(frozen=True)
class Contrast:
    """A model and the prompts it is looked into with.

    Args:
        loaded: the model.
        prompts: ``harmful`` and ``harmless``.
        batch_size: prompts at a time.
        progress: hears of the work.
    """

    loaded: LoadedModel
    prompts: Mapping[Side, PromptSet]
    batch_size: int
    progress: Progress


@dataclass
class AttackContext:
    """The model under attack and what is known of it.

    Args:
        loaded: the model.
        mask: the neurons found before.
        request: what was asked for.
        finding: the prompts that sets are found on, ``harmful`` and ``harmless``; none of
            them is answered in the attack.
        progress: hears of the work.
    """

    loaded: LoadedModel
    mask: MaskFile
    request: AttackRequest
    finding: dict[Side, PromptSet]
    progress: Progress
    _tables: dict[int, pd.DataFrame] = field(default_factory=dict)

    @property
    def widths(self) -> list[int]:
        """Neurons in each layer."""
        return self.loaded.layout.widths

    @property
    def contrast(self) -> Contrast:
        """What looks into the model without a mask."""
        return Contrast(self.loaded, self.finding, self.request.batch_size, self.progress)

    @property
    def full(self) -> NeuronSet:
        """The mask's neurons."""
        return self.mask.neuron_set()

    @property
    def position(self) -> Position:
        """The token position that the mask was found at; ``last`` where it does not say."""
        named = self.mask.method.parameters.get("position")
        return "mean" if named == "mean" else "max" if named == "max" else "last"

    @cached_property
    def selection(self) -> Selection:
        """How the mask was chosen; where moments do not tell, as large a share by ES and SAS."""
        method, parameters = self.mask.method.name, self.mask.method.parameters
        if any(name.startswith(("tau_", "top", "fdr")) for name in parameters):
            try:
                selection = Selection.of(method, parameters)
            except SafeNeuronError:
                pass  # a method of another tool
            else:
                if {leaf.name for leaf in selection.scores} <= set(ALWAYS):
                    return selection
        return Selection(top=min(max(self.mask.fraction, 1e-9), 1 - 1e-9))

    def find(self, removed: NeuronSet, selection: Selection | None = None) -> NeuronSet:
        """Identify on the model under attack, with ``removed`` zeroed."""
        table = self.table(removed)
        parts = select_parts(table, self.widths, selection or self.selection)
        return reduce(or_, parts.values())

    def table(self, removed: NeuronSet) -> pd.DataFrame:
        """Scores of every neuron on the model with ``removed`` zeroed; measured once."""
        key = hash(removed)
        if key not in self._tables:
            with self.under(Plan((Intervention(removed),))):
                self._tables[key] = self._measure()
        return self._tables[key]

    def _measure(self) -> pd.DataFrame:
        backend = HooksBackend(self.loaded)
        total = sum(len(prompts) for prompts in self.finding.values())
        count = counter(self.progress, "find", total)
        sides: tuple[Side, Side] = ("harmful", "harmless")
        moments = [
            capture_moments(
                self.loaded,
                backend,
                self.finding[side].texts,
                self.position,
                self.request.batch_size,
                count,
            )
            for side in sides
        ]
        return score_table(moments[0], moments[1])

    @contextmanager
    def under(self, plan: Plan) -> Iterator[None]:
        """Run whole batches under one plan."""
        if plan.empty:
            yield
            return
        rows = RowPlans(self.loaded, [plan])
        rows.assign([0])
        with rows.attached():
            yield

    def batches(self, texts: Sequence[str], size: int | None = None) -> Iterator[Batch]:
        """Prompts, rendered, sorted by length and padded on the right."""
        rendered = [render(self.loaded.tokenizer, text) for text in texts]
        pad = self.loaded.tokenizer.pad_token_id
        for batch in batches(rendered, size or self.request.batch_size, pad):
            yield batch.to(self.loaded.device)


def counter(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    """Count work into a progress stage."""
    done = 0
    progress(stage, 0, total)

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(stage, done, total)

    return count
