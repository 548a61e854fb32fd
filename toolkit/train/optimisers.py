"""Optimisers by the names that a request has, and which are at hand."""

from importlib.util import find_spec

from toolkit.errors import SafeNeuronError
from toolkit.train.recipes import OptimiserName

# transformers' TrainingArguments(optim=, optim_args=).
_TRANSFORMERS: dict[OptimiserName, tuple[str, str | None]] = {
    "adamw": ("adamw_torch_fused", None),
    "sgd": ("sgd", "momentum=0.9"),
    "adafactor": ("adafactor", None),
    "adamw-8bit": ("adamw_bnb_8bit", None),
}


def optimiser_arguments(name: OptimiserName) -> dict[str, str | None]:
    """How transformers is told of an optimiser.

    Raises:
        SafeNeuronError: its library is not installed.
    """
    if name == "adamw-8bit" and find_spec("bitsandbytes") is None:
        raise SafeNeuronError(
            "the optimiser adamw-8bit needs bitsandbytes, which is not installed: pip install "
            "bitsandbytes, or choose --optimiser adamw"
        )
    optim, arguments = _TRANSFORMERS[name]
    return {"optim": optim, "optim_args": arguments}
