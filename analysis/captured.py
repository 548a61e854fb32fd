"""What scores read, measured once, and the scores themselves: both kept in the store.

Moments, and activations where a score reads them, are entries of their own, so that
another score over the same prompts runs no model. Everything else is measured for one
score, and the score is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from analysis.expressions import Leaf
from analysis.requests import IdentifyRequest
from analysis.scores.registry import Reads, Score, evaluate, find_score
from analysis.scores.resampling import bootstrap, require_by_prompt
from analysis.scores.table import Scored
from analysis.store import About, Entry, Store
from toolkit.capture.moments import Moments
from toolkit.errors import SafeNeuronError
from toolkit.masks import SITE, ModelInfo
from toolkit.models.sources import ModelFolder, resolve
from toolkit.progress import Progress
from toolkit.prompt_sets import PromptSet

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel

    Loader = Callable[[], LoadedModel]

SIDES = ("harmful", "harmless")
# What a kind of evidence depends on besides the model and the prompts.
SETTINGS: dict[Reads, tuple[str, ...]] = {
    "moments": ("position", "backend"),
    "activations": ("position", "backend"),
    "wanda": ("answer_tokens",),
    "snip": ("answer_tokens",),
    "change": ("answer_tokens",),
}


class Captured:
    """What is known of a model's neurons on the prompts of a request.

    Args:
        request: the model, the token position and the rest of what is measured.
        folder: the model.
        sets: ``harmful``, ``harmless`` and, where one was given, ``utility``.
        progress: hears of the work.
        store: where it is kept.
        load: loads the model where it has to be run, for a caller that keeps it loaded.
    """

    def __init__(
        self,
        request: IdentifyRequest,
        folder: ModelFolder,
        sets: Mapping[str, PromptSet],
        progress: Progress,
        store: Store,
        load: "Loader | None" = None,
    ) -> None:
        self.request, self.folder, self.sets = request, folder, dict(sets)
        self.progress, self.store, self._load = progress, store, load
        self.ran = False
        """Whether a model had to be run."""

    # --- the model -------------------------------------------------------------------

    @cached_property
    def loaded(self) -> "LoadedModel":
        """The model, loaded when something first has to be measured."""
        import torch

        from toolkit.models.load import load_model

        self.ran = True
        if self._load is not None:
            return self._load()
        return load_model(self.folder, dtype=getattr(torch, self.request.dtype))

    @cached_property
    def base_folder(self) -> ModelFolder:
        """The model that ``change`` compares with.

        Raises:
            SafeNeuronError: none was given.
        """
        if self.request.base is None:
            raise SafeNeuronError(
                "change compares two models: give the one from before alignment with --base"
            )
        return resolve(self.request.base)

    # --- moments and activations ------------------------------------------------------

    def moments(self, subject: str = "harmful", whole: bool = False) -> Entry:
        """Moments of ``subject`` and of the harmless prompts.

        Args:
            subject: which prompts stand on the harmful side.
            whole: keep the activations too, in the same pass.
        """
        recipe = self._recipe("moments", subject)
        with self.store.computing("moments", recipe) as there:
            return there or self._save_moments(subject, recipe, whole)

    def _save_moments(self, subject: str, recipe: dict[str, Any], whole: bool) -> Entry:
        if whole or self.store.find("activations", self._recipe("activations", subject)):
            held = self.activations(subject)
            sides = {side: [Moments.of(a) for a in _layers(held, side)] for side in SIDES}
            model = held.summary["model"]
        else:
            sides = self._capture_moments(subject)
            model = self.loaded.info.model_dump()

        def write(scratch: Path) -> None:
            arrays = {
                f"{side}.{layer}.{name}": np.ascontiguousarray(getattr(m, name))
                for side, layers in sides.items()
                for layer, m in enumerate(layers)
                for name in ("mean", "m2")
            }
            save_file(arrays, scratch / "moments.safetensors")

        counts = {side: len(prompts) for side, prompts in self._pair(subject).items()}
        return self.store.save(
            "moments",
            recipe,
            self._title("activations", subject),
            {"model": model, "counts": counts},
            write,
            self._about(subject, f"mean and variance at the {self.request.position} position"),
        )

    def _capture_moments(self, subject: str) -> dict[str, list[Moments]]:
        from toolkit.capture.backends import make_backend
        from toolkit.capture.base import capture_moments

        request, loaded = self.request, self.loaded
        backend = make_backend(request.backend, loaded)
        pair = self._pair(subject)
        count = self.counter("capture", sum(map(len, pair.values())))
        return {
            side: capture_moments(
                loaded, backend, prompts.texts, request.position, request.batch_size, count
            )
            for side, prompts in pair.items()
        }

    def activations(self, subject: str = "harmful") -> Entry:
        """Every neuron on every prompt of ``subject`` and of the harmless ones."""
        recipe = self._recipe("activations", subject)
        with self.store.computing("activations", recipe) as there:
            return there or self._save_activations(subject, recipe)

    def _save_activations(self, subject: str, recipe: dict[str, Any]) -> Entry:
        from toolkit.capture.activations import capture_activations
        from toolkit.capture.backends import make_backend

        request, loaded = self.request, self.loaded
        backend = make_backend(request.backend, loaded)
        pair = self._pair(subject)
        count = self.counter("capture", sum(map(len, pair.values())))
        arrays = {
            f"{side}.{layer}": values
            for side, prompts in pair.items()
            for layer, values in enumerate(
                capture_activations(
                    loaded, backend, prompts.texts, request.position, request.batch_size, count
                )
            )
        }
        return self.store.save(
            "activations",
            recipe,
            self._title("activations, prompt by prompt,", subject),
            {"model": loaded.info.model_dump()},
            lambda scratch: save_file(arrays, scratch / "activations.safetensors"),
            self._about(subject, f"every prompt at the {request.position} position"),
        )

    # --- scores -------------------------------------------------------------------------

    def scored(self, leaf: Leaf) -> Scored:
        """One score of every neuron, measured as its side says.

        Raises:
            SafeNeuronError: a prompt set or a model is missing that it needs, or its
                function gives something else than a number for each neuron.
        """
        if leaf.side == "contrast":
            return self.scored(Leaf(leaf.score)).minus(self.scored(Leaf(leaf.score, "utility")))
        return read_scored(self.score_entry(leaf))

    def score_entry(self, leaf: Leaf) -> Entry:
        """Where one score is kept, computed when it isn't there."""
        found = find_score(leaf.score)
        subject = self.subject(leaf)
        if self.request.bootstrap:
            require_by_prompt(found)
        recipe = {
            "score": found.name,
            "digest": found.digest,
            "reads": found.reads,
            "evidence": self._recipe(found.reads, subject),
            "bootstrap": self.request.bootstrap,
        }
        with self.store.computing("score", recipe) as there:
            return there or self._save_score(leaf, found, subject, recipe)

    def _save_score(self, leaf: Leaf, found: Score, subject: str, recipe: dict[str, Any]) -> Entry:
        scored, model = self._compute(found, subject)
        arrays = {
            name.removeprefix(f"{leaf.name}_"): part
            for name, part in scored.columns(leaf.name).items()
        }
        arrays = {"score" if name == leaf.name else name: part for name, part in arrays.items()}
        return self.store.save(
            "score",
            recipe,
            self._title(leaf.name, subject),
            {
                "score": found.name,
                "name": leaf.name,
                "title": found.title,
                "source": found.source,
                "model": model,
                "prompts": self.sets[subject].name,
                "position": self.request.position if found.reads in SETTINGS else None,
            },
            lambda scratch: save_file(arrays, scratch / "score.safetensors"),
            self._about(subject, found.title or found.name),
        )

    def subject(self, leaf: Leaf) -> str:
        """Which prompts a score's harmful side is.

        Raises:
            SafeNeuronError: it needs a utility set of its own and none was given.
        """
        if not leaf.side:
            return "harmful"
        if "utility" in self.sets:
            return "utility"
        if find_score(leaf.score).contrast:
            raise SafeNeuronError(
                f"{leaf.name} holds utility prompts against harmless ones: give them with --utility"
            )
        return "harmless"

    def _compute(self, score: Score, subject: str) -> tuple[Scored, dict[str, Any]]:
        sides, model = self._sides(score.reads, subject)
        widths = ModelInfo.model_validate(model).neurons_per_layer
        values = evaluate(score.function, score.name, sides, widths)
        p = None
        if score.p_value is not None:
            p = evaluate(score.p_value, score.name, sides, widths)
        if not self.request.bootstrap:
            return Scored(values, p), model
        held = self.activations(subject)
        count = self.counter("bootstrap", self.request.bootstrap * sum(map(bool, widths)))
        ends = [
            bootstrap(score, harmful, harmless, self.request.bootstrap, on_resample=count)
            for harmful, harmless in zip(*(_layers(held, side) for side in SIDES), strict=True)
            if harmful.shape[1]
        ]
        low, high = (np.concatenate(parts) for parts in zip(*ends, strict=True))
        return Scored(values, p, low, high), model

    def _sides(self, reads: Reads, subject: str) -> tuple[list[Sequence[Any]], dict[str, Any]]:
        """A kind of evidence, one or two sequences of one piece a layer, and whose it is."""
        if reads == "moments":
            entry = self.moments(subject)
            return [load_moments(entry, side) for side in SIDES], entry.summary["model"]
        if reads == "activations":
            entry = self.activations(subject)
            return [_layers(entry, side) for side in SIDES], entry.summary["model"]
        from analysis.measuring import MEASURES

        return list(MEASURES[reads](self, subject)), self.loaded.info.model_dump()

    # --- what results are made of -------------------------------------------------------

    def _recipe(self, reads: Reads, subject: str) -> dict[str, Any]:
        recipe = {
            "fingerprint": self.folder.fingerprint,
            "tokenizer": self.folder.tokenizer,
            "harmful": self.sets[subject].sha256,
            "harmless": self.sets["harmless"].sha256,
            "site": SITE,
            "dtype": self.request.dtype,
        }
        if reads in ("contributions", "wanda", "snip", "change"):
            del recipe["harmless"]
        recipe |= {name: getattr(self.request, name) for name in SETTINGS.get(reads, ())}
        if reads == "change":
            recipe["base"] = self.base_folder.fingerprint
        return recipe

    def _pair(self, subject: str) -> dict[str, PromptSet]:
        return {"harmful": self.sets[subject], "harmless": self.sets["harmless"]}

    def _title(self, what: str, subject: str) -> str:
        prompts, harmless = self.sets[subject].name, self.sets["harmless"].name
        return (
            f"{what} of {self.request.model} at the {self.request.position} position, {prompts} "
            f"against {harmless}"
        )

    def _about(self, subject: str, by: str) -> About:
        return About(self.request.model, in_words(self._pair(subject)), by)

    def counter(self, stage: str, total: int) -> Callable[[int], None]:
        """Count work into a progress stage."""
        done = 0
        self.progress(stage, 0, total)

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.progress(stage, done, total)

        return count


def in_words(sets: Mapping[str, PromptSet]) -> str:
    """Prompt sets in words, for a listing."""
    return " against ".join(f"{len(found)} of {found.name}" for found in sets.values())


def load_moments(entry: Entry, side: str) -> list[Moments]:
    """One side of a ``moments`` entry, a piece for each layer."""
    arrays = load_file(entry.file("moments.safetensors"))
    count = entry.summary["counts"][side]
    return [
        Moments(count, arrays[f"{side}.{layer}.mean"], arrays[f"{side}.{layer}.m2"])
        for layer in range(entry.summary["model"]["layers"])
    ]


class _Layers(Sequence[np.ndarray]):
    """One side of an ``activations`` entry, read from disk layer by layer."""

    def __init__(self, entry: Entry, side: str) -> None:
        self._path, self._side = entry.file("activations.safetensors"), side
        self._count = entry.summary["model"]["layers"]

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, layer: Any) -> Any:
        if not 0 <= layer < len(self):
            raise IndexError(layer)
        with safe_open(self._path, framework="numpy") as file:
            return file.get_tensor(f"{self._side}.{layer}")


def _layers(entry: Entry, side: str) -> _Layers:
    return _Layers(entry, side)


def read_scored(entry: Entry) -> Scored:
    """The score that a ``score`` entry holds."""
    arrays = load_file(entry.file("score.safetensors"))
    return Scored(arrays["score"], *(arrays.get(name) for name in ("p", "low", "high")))
