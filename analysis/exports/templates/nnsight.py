"""A neuron mask as an edit of an nnsight 0.8 model, exported by SafeNeuron.

Put this file where Python finds it (nnsight compiles the block below from its source), then

    edited = edit(model)
    with edited.trace(prompt):
        logits = edited.output.logits.save()

runs a ``TransformersModel`` or ``NNsight`` with the mask's neurons at zero (or at ``value``) in
every forward pass, each step of ``edited.generate`` among them; ``model`` itself stays as it
is. nnsight warns that its open loop over steps ended, which is how such a loop ends. ``ABOUT``
says which model the mask is of and how it was made.
"""

import re
from typing import Any

ABOUT: dict[str, Any] = {}
NEURONS: dict[int, list[int]] = {}
WIDTHS: list[int] = []

# Down projections of the families that SafeNeuron knows; element j of their input is neuron j.
DOWN = re.compile(
    r"(?:.*\.)?(?:layers|h)\.(\d+)\."
    r"(?:(?:mlp|feed_forward)\.(?:down_proj|c_proj|dense_4h_to_h|fc2)|fc2)"
)
NOT_LANGUAGE = ("visual", "vision", "image", "audio")


def edit(model: Any, value: float = 0.0) -> Any:
    """A copy of the model that holds the neurons at ``value`` whenever it is traced."""
    names = sites(model)
    places = [(names[layer], indices) for layer, indices in NEURONS.items()]
    with model.edit() as (tracer, edited):
        for _ in tracer.iter[:]:
            for name, indices in places:
                site = edited.get(name)
                changed = site.input.clone()
                changed[..., indices] = value
                site.input = changed
    return edited


def sites(model: Any) -> dict[int, str]:
    """Layer -> name of its down projection, checked against the mask's model."""
    found = {
        int(match[1]): name
        for name, _ in model._module.named_modules()
        if (match := DOWN.fullmatch(name)) and not any(part in name for part in NOT_LANGUAGE)
    }
    if sorted(found) != list(range(len(WIDTHS))):
        raise ValueError(f"the mask is for {len(WIDTHS)} layers, the model has {len(found)}")
    return found
