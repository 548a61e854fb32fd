"""``safeneuron doctor``: do the capture backends agree on a model?"""

from dataclasses import asdict
from typing import Annotated

import typer

from app import terminal
from app.commands.options import Json, Model
from toolkit.errors import SafeNeuronError


def doctor(
    model: Model,
    prompts: Annotated[str, typer.Option(help="Prompts to compare on.")] = "harmless-train[:8]",
    as_json: Json = False,
) -> None:
    """Check that the backends agree on this model, neuron by neuron."""
    from toolkit.capture.parity import compare_backends
    from toolkit.models.load import load_model
    from toolkit.prompts import read_prompts

    names = ("torch", "transformerlens", "nnsight")
    checks = compare_backends(load_model(model), read_prompts(prompts).texts, names)
    if as_json:
        terminal.print_json([asdict(check) for check in checks])
    else:
        rows = [
            (
                check.backend,
                "yes" if check.agrees else "NO",
                "-" if check.difference is None else f"{check.difference:.1e}",
                f"{check.neurons}/{check.expected}",
                f"{check.seconds:.1f}",
                check.reason or "",
            )
            for check in checks
        ]
        columns = ("check", "agrees", "relative difference", "neurons", "seconds", "note")
        terminal.print_table(f"{model}: the input of down_proj, on every token", columns, rows)
    # A backend that can't run this model is no fault of the model; a wrong number is.
    if any(check.difference is not None and not check.agrees for check in checks):
        raise SafeNeuronError(f"the checks disagree on {model}: do not trust its figures")
