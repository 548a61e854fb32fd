"""What a job can do: each verb's request, and whether it trains."""

from typing import Any, Literal, get_args

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.chat import ChatRequest
from analysis.neuron import NeuronRequest
from analysis.requests import AttackRequest, IdentifyRequest, Request, parse_request
from toolkit.errors import SafeNeuronError

Verb = Literal["identify", "attack", "align", "rounds", "chat", "neuron"]
VERBS: tuple[Verb, ...] = get_args(Verb)
REQUESTS: dict[Verb, type[Request]] = {
    "identify": IdentifyRequest,
    "attack": AttackRequest,
    "align": AlignRequest,
    "rounds": RoundsRequest,
    "chat": ChatRequest,
    "neuron": NeuronRequest,
}
TRAINING: frozenset[Verb] = frozenset({"align", "rounds"})


def parse_verb(name: object) -> Verb:
    """The verb of that name.

    Raises:
        SafeNeuronError: there is none.
    """
    for verb in VERBS:
        if verb == name:
            return verb
    raise SafeNeuronError(f"no job does {str(name)[:40]!r}; jobs are {', '.join(VERBS)}")


def parse_asked(verb: Verb, values: object) -> dict[str, Any]:
    """A request's fields as JSON values, checked.

    Raises:
        SafeNeuronError: a value is missing, unknown or out of range.
    """
    return parse_request(REQUESTS[verb], values).model_dump(mode="json")
