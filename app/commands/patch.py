"""``safeneuron patch``: does a mask carry an aligned model's refusals into its base?"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from analysis.requests import DEFAULT_ATTACKED
from app import terminal
from app.commands.options import Json


def patch(
    model: Annotated[str, typer.Argument(help="The model after alignment.")],
    base: Annotated[str, typer.Option(help="The model from before alignment.")],
    mask: Annotated[Path, typer.Option(help="Whose neurons are put in.")],
    harmful: Annotated[str, typer.Option(help="Prompt set or file.")] = DEFAULT_ATTACKED,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 48,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the random set.")] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Put the mask's activations into the base as it answers (dynamic activation patching)."""
    from analysis.patching import causal_effect
    from toolkit.masks import read_mask
    from toolkit.prompts import read_prompts

    neurons = read_mask(mask).neuron_set()
    prompts = read_prompts(harmful)

    import torch

    from toolkit.models.load import load_model

    kind = getattr(torch, dtype)
    before, after = load_model(base, dtype=kind), load_model(model, dtype=kind)
    with terminal.progress_bar() as progress:
        found = causal_effect(
            before, after, neurons, prompts.texts, max_new_tokens, batch_size, seed, progress
        )
    if as_json:
        terminal.print_json(asdict(found))
        return
    rows = [
        ("before alignment", str(found.base)),
        ("after alignment", str(found.aligned)),
        ("before, with the mask's neurons", str(found.patched)),
        ("before, with as many random ones", str(found.random)),
    ]
    title = f"{prompts.name} refused, k/n with Wilson 95 % intervals"
    terminal.print_table(title, ("model", "refused"), rows)
    terminal.say(
        f"the mask carries {found.effect:.0%} [{found.low:.0%}, {found.high:.0%}] of what "
        f"alignment gained, a random set {found.random_effect:.0%}"
    )
