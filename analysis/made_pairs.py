"""Preference pairs made from answers: the model's own, or another's where it refuses everything.

On harmful prompts a pair needs an answer to avoid. A model aligned well has none, not even
without its safety neurons; the model before its alignment does, or any other that complies.
Only its text is used, so it may be of any size and have any tokenizer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.align_requests import AlignRequest
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet
from toolkit.progress import OnEvent
from toolkit.prompt_sets import PromptSet
from toolkit.prompts import read_prompts

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel
    from toolkit.train.pairs import Answers, PairReport, PreferencePair


def made_pairs(
    request: AlignRequest,
    loaded: "LoadedModel",
    neurons: NeuronSet | None,
    on_event: OnEvent,
    report: "PairReport",
) -> "list[PreferencePair]":
    """Make pairs, no more than the run will see.

    Args:
        request: its prompts, and ``rejected_from``.
        loaded: the model that is to be trained.
        neurons: removed where it refuses; None to take its answers as they are.
        on_event: hears of the work.
        report: gets the sources, and counts prompts without contrast.

    Raises:
        SafeNeuronError: prompts that can't be read, or another model that can't answer them.
    """
    from toolkit.train.pairs import make_pairs, own_compliance, shipped_refusals

    # Each prompt costs an answer or two.
    half = (request.steps * request.batch_size + 1) // 2 if request.epochs is None else None
    harmful, harmless = (
        allowed_prompts(request, name)[:half] for name in (request.harmful, request.harmless)
    )
    for role, prompts in (("harmful", harmful), ("harmless", harmless)):
        info = {"name": prompts.name, "role": role, "sha256": prompts.sha256, "pairs": len(prompts)}
        report.sources.append(info)
    answers = _Answering(request, on_event, len(harmful) + len(harmless))
    own = answers.of(loaded, None)
    comply = own_compliance(own, answers.of(loaded, neurons))
    if not _itself(request):

        def comply(texts: Sequence[str]) -> list[str]:
            other = _other_model(request, texts)
            info = {"name": request.rejected_from, "role": "rejected"}
            report.sources.append(
                info | {"sha256": other.folder.fingerprint, "pairs": len(harmful)}
            )
            return answers.of(other, None)(texts)

    return make_pairs(
        harmful.texts, harmless.texts, own, comply, shipped_refusals(), request.seed, report
    )


def allowed_prompts(request: AlignRequest, name: str) -> PromptSet:
    """A prompt set without what the run leaves out.

    Raises:
        SafeNeuronError: prompts that can't be read, or none is left.
    """
    prompts = read_prompts(name)
    if request.leave_out is not None:
        prompts = prompts.without(read_prompts(request.leave_out))
    if not len(prompts):
        raise SafeNeuronError(f"{prompts.name} holds no prompts; leave out others")
    return prompts


def require_refusing(
    request: AlignRequest, pairs: "Sequence[PreferencePair]", report: "PairReport"
) -> None:
    """Count the pairs on harmful prompts.

    Raises:
        SafeNeuronError: there are none, so that training would teach to answer everything.
    """
    harmful = set(read_prompts(request.harmful).texts)
    report.safety = sum(pair.prompt in harmful for pair in pairs)
    if not report.safety:
        who = request.model if _itself(request) else request.rejected_from
        raise SafeNeuronError(
            f"no pair teaches refusing: {who} complies with none of the harmful prompts; give "
            "--rejected-from a model that does, or preference pairs of your own"
        )


def _itself(request: AlignRequest) -> bool:
    return request.rejected_from in (None, request.model)


def _other_model(request: AlignRequest, texts: Sequence[str]) -> "LoadedModel":
    """The model that complies, loaded, and able to answer these prompts."""
    from toolkit.generate import prompt_ids
    from toolkit.models.load import context_length, load_answering

    try:
        other = load_answering(str(request.rejected_from))
    except SafeNeuronError as error:
        raise SafeNeuronError(f"rejected-from: {error}") from error
    prompts = [prompt_ids(other, text) for text in texts]
    known = other.model.get_input_embeddings().num_embeddings
    highest = max((max(ids, default=0) for ids in prompts), default=0)
    # Where its files are missing, a tokenizer may be made that knows nothing.
    if not all(prompts) or highest >= known:
        wrong = f"has token {highest}, its model knows {known}" if all(prompts) else "knows no word"
        raise SafeNeuronError(
            f"rejected-from {request.rejected_from}: its tokenizer {wrong}; give a folder whose "
            "tokenizer is the model's own"
        )
    limit = context_length(other.model.config)
    longest = max((len(ids) for ids in prompts), default=0) + request.answer_tokens
    if limit is not None and longest > limit:
        raise SafeNeuronError(
            f"rejected-from {request.rejected_from}: it takes {limit} tokens, the longest prompt "
            f"and its answer need {longest}; lower --answer-tokens, or give another model"
        )
    return other


class _Answering:
    """Greedy answers, with one count of progress over all models that give them."""

    def __init__(self, request: AlignRequest, on_event: OnEvent, total: int) -> None:
        self._request, self._on_event, self._total = request, on_event, total
        self._done = 0

    def of(self, loaded: "LoadedModel", neurons: NeuronSet | None) -> "Answers":
        """Answers of a model, whole or without some neurons."""
        import torch

        from toolkit.generate import generate
        from toolkit.intervene import Intervention, intervene

        removed = neurons if neurons is not None else NeuronSet.empty(loaded.layout.widths)
        dtype = torch.bfloat16 if self._request.dtype == "bfloat16" else torch.float32

        def answer(texts: Sequence[str]) -> list[str]:
            with (
                intervene(loaded.model, loaded.layout, Intervention(removed)),
                torch.autocast(loaded.device.type, dtype, enabled=dtype != torch.float32),
            ):
                return generate(loaded, texts, self._request.answer_tokens, on_prompts=self._count)

        return answer

    def _count(self, prompts: int) -> None:
        self._done = min(self._done + prompts, self._total)
        self._on_event(
            {"kind": "stage", "stage": "pairs", "done": self._done, "total": self._total}
        )
