"""``safeneuron rounds``: identify, align, identify again on the new model, as often as asked."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import typer

from analysis.align_requests import RoundsRequest
from analysis.requests import (
    DEFAULT_ATTACKED,
    DEFAULT_HARMFUL,
    DEFAULT_HARMLESS,
    OWN_ES,
    OWN_SAS,
    parse_request,
)
from app import terminal
from toolkit.errors import SafeNeuronError
from toolkit.train.recipes import PresetName, RecipeName


def rounds(
    model: Annotated[str, typer.Argument(help="The model to begin with, T0.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of T1, T2, ...")],
    count: Annotated[int, typer.Option("--rounds", help="How many.")] = 3,
    mask: Annotated[
        Path | None, typer.Option(help="Neurons of T0; identified when left out.")
    ] = None,
    recipe: Annotated[RecipeName, typer.Option(help="As that of align.")] = "safeneuron",
    preset: Annotated[PresetName, typer.Option(help="As that of align.")] = "two-core",
    zero: Annotated[
        bool | None,
        typer.Option("--zero/--no-zero", help="Zero the frozen neurons while training."),
    ] = None,
    top: Annotated[float | None, typer.Option(help="Identify this share, 0 to 1.")] = None,
    top_es: Annotated[
        float | None, typer.Option(help=f"This share by ES; {OWN_ES:g} by default.")
    ] = None,
    top_sas: Annotated[
        float | None, typer.Option(help=f"This share by SAS; {OWN_SAS:g} by default.")
    ] = None,
    position: Annotated[
        Literal["last", "mean", "max"], typer.Option(help="Token position.")
    ] = "last",
    find_harmful: Annotated[str, typer.Option(help="Prompts to identify on.")] = DEFAULT_HARMFUL,
    find_harmless: Annotated[str, typer.Option(help="Prompts to identify on.")] = DEFAULT_HARMLESS,
    pairs: Annotated[
        Path | None, typer.Option(help="Preference pairs; made from T0 by default.")
    ] = None,
    safety: Annotated[str | None, typer.Option(help="As that of align.")] = None,
    general: Annotated[str | None, typer.Option(help="As that of align.")] = None,
    total: Annotated[int | None, typer.Option(help="Pairs drawn; all by default.")] = None,
    fresh_pairs: Annotated[
        bool, typer.Option("--fresh-pairs", help="Make or draw them anew in each round.")
    ] = False,
    harmful: Annotated[str, typer.Option(help="Prompts for made pairs.")] = "advbench[::2]",
    harmless: Annotated[str, typer.Option(help="Prompts for made pairs.")] = "harmless-train",
    rejected_from: Annotated[str | None, typer.Option(help="As that of align.")] = None,
    leave_out: Annotated[
        str | None, typer.Option(help="Prompts kept out of made pairs and identification.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps a round.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Instead of steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Train adapters and merge them.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and answer.")] = 256,
    seed: Annotated[int, typer.Option()] = 0,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option()] = "bfloat16",
    attack: Annotated[
        bool, typer.Option("--attack", help="Attack T0, T1, ... with the neurons of T0.")
    ] = False,
    attacked: Annotated[
        str, typer.Option(help="Harmful prompts of the attacks.")
    ] = DEFAULT_ATTACKED,
    attacked_harmless: Annotated[str, typer.Option()] = "harmless-heldout[:60]",
    attack_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 48,
    force: Annotated[bool, typer.Option("--force", help="Use another model's mask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Align in rounds, the union of all neurons found so far frozen (the paper's T1, T2, T3).

    Run again after a kill or a cancel, it goes on where it was.
    """
    from analysis.rounds import read_rounds
    from app.launch import run_to_end

    values: dict[str, Any] = {
        key: value for key, value in locals().items() if key in RoundsRequest.model_fields
    }
    values["rounds"] = count
    if steps is not None and epochs is not None:
        raise SafeNeuronError("give --steps or --epochs, not both")
    if top is not None and (top_es, top_sas) != (None, None):
        raise SafeNeuronError("give --top, or --top-es and --top-sas, not both")
    if top is None:
        usual = {"top_es": OWN_ES, "top_sas": OWN_SAS}
        values |= {name: share for name, share in usual.items() if values[name] is None}
    request = parse_request(RoundsRequest, values)
    with terminal.progress_bar() as progress:
        run_to_end("rounds", request, output, progress, terminal.note)
    table = read_rounds(output.expanduser()).table()
    if as_json:
        plain = table.astype(object).where(table.notna(), None)
        terminal.print_json({"folder": str(output), "table": plain.to_dict("records")})
        return
    rows = [["-" if pd.isna(cell) else _shown(cell) for cell in row] for row in table.to_numpy()]
    terminal.print_table(f"{model} in {count} rounds", list(table.columns), rows)
    terminal.say(f"models: {output}")


def _shown(cell: Any) -> str:
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
