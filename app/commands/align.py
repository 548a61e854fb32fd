"""``safeneuron align``: train with frozen neurons, or say what it would take."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from analysis.align_requests import AlignRequest
from analysis.requests import DEFAULT_ATTACKED, parse_request
from app import terminal
from app.commands.options import Json, Model, named_numbers
from toolkit.errors import SafeNeuronError
from toolkit.train.recipes import OptimiserName, PresetName, RecipeName, Reference


def align(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new model.")],
    mask: Annotated[Path | None, typer.Option(help="Neurons to freeze.")] = None,
    recipe: Annotated[
        RecipeName, typer.Option(help="How; toolkit/train/recipes.py has their numbers.")
    ] = "safeneuron",
    preset: Annotated[
        PresetName, typer.Option(help="Numbers for two cores, or the paper's.")
    ] = "two-core",
    zero: Annotated[
        bool | None,
        typer.Option("--zero/--no-zero", help="Zero the frozen neurons while training."),
    ] = None,
    reference: Annotated[
        Reference, typer.Option(help="DPO's reference: whole, or with them zeroed too.")
    ] = "whole",
    foundation: Annotated[
        Path | None, typer.Option(help="Mask of what rsn-tune leaves out; found by default.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Preference pairs; made from the model by default.")
    ] = None,
    safety: Annotated[
        str | None,
        typer.Option(help="Safety pairs: a file, pku-saferlhf, hh-rlhf, spa-vl or a hub name."),
    ] = None,
    general: Annotated[
        str | None, typer.Option(help="General pairs mixed in: a file, ultrafeedback, or a hub's.")
    ] = None,
    safety_share: Annotated[float, typer.Option(help="Of safety pairs in the mixture.")] = 0.3,
    safety_label: Annotated[
        Literal["safer", "better"], typer.Option(help="PKU-SafeRLHF's label that decides.")
    ] = "safer",
    total: Annotated[int | None, typer.Option(help="Pairs drawn; all by default.")] = None,
    harmful: Annotated[str, typer.Option(help="Prompts for made pairs.")] = "advbench[::2]",
    harmless: Annotated[str, typer.Option(help="Prompts for made pairs.")] = "harmless-train",
    rejected_from: Annotated[
        str | None,
        typer.Option(
            help="Model that complies, for made pairs; an embedded one's base, or itself."
        ),
    ] = None,
    leave_out: Annotated[
        str | None, typer.Option(help="Prompts kept out of made pairs and searches.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps; this and what follows is the preset's.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the pairs, instead of steps.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak.")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    beta: Annotated[float | None, typer.Option(help="Of DPO.")] = None,
    sft_weight: Annotated[float | None, typer.Option(help="Of the SFT loss on chosen.")] = None,
    kl_weight: Annotated[float | None, typer.Option(help="Of neuronguard's divergence.")] = None,
    find_every: Annotated[
        int | None, typer.Option(help="Steps between searches, where a recipe looks again.")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Train an adapter and merge it; 0 for the weights.")
    ] = None,
    lora_alpha: Annotated[int | None, typer.Option()] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER: of what adaptive draws; toolkit/train/recipes.py."),
    ] = None,
    optimiser: Annotated[OptimiserName, typer.Option()] = "adamw",
    max_grad_norm: Annotated[float, typer.Option(help="Gradients are clipped to it.")] = 1.0,
    micro_batch: Annotated[
        int | None, typer.Option(help="Pairs at a time; halved when memory runs out.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and answer.")] = 256,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of a made answer.")] = 64,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; a quarter of the run.")
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps between looks at held-out pairs and prompts.")
    ] = None,
    held_out: Annotated[int, typer.Option(help="Pairs set aside for that.")] = 16,
    held_harmful: Annotated[str, typer.Option(help="Prompts for that.")] = "advbench[1::32]",
    held_harmless: Annotated[str, typer.Option(help="Prompts for that.")] = "harmless-forms[::48]",
    patience: Annotated[
        int | None, typer.Option(help="End after so many looks without a better margin.")
    ] = None,
    attack: Annotated[
        bool, typer.Option("--attack", help="Attack it before and after, and show both.")
    ] = False,
    attacked: Annotated[str, typer.Option(help="Harmful prompts for that.")] = DEFAULT_ATTACKED,
    attacked_harmless: Annotated[
        str, typer.Option(help="Harmless prompts for that.")
    ] = "harmless-heldout[:60]",
    seed: Annotated[int, typer.Option()] = 0,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option()] = "bfloat16",
    force: Annotated[bool, typer.Option("--force", help="Use another model's mask.")] = False,
    only_estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what memory and time it will take.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train with the mask's neurons frozen (frozen-neuron DPO), in a process of its own.

    Run again after a kill or a cancel, it goes on from the last checkpoint.
    """
    from app.launch import run_to_end

    values = {key: value for key, value in locals().items() if key in AlignRequest.model_fields}
    values["mixture"] = named_numbers("--mix", mix)
    if steps is not None and epochs is not None:
        raise SafeNeuronError("give --steps or --epochs, not both")
    request = parse_request(AlignRequest, values)
    if only_estimate:
        _print_estimate(request, as_json)
        return
    with terminal.progress_bar() as progress:
        result = run_to_end("align", request, output, progress, terminal.note)
    if as_json:
        terminal.print_json(result)
        return
    for name, value in result.items():
        terminal.say(f"{name}: {value}")
    terminal.say(f"model: {output}")


def _print_estimate(request: AlignRequest, as_json: bool) -> None:
    from analysis.estimate import estimate
    from analysis.listing import size_in_words
    from app.jobs.folder import list_jobs, state_of
    from app.jobs.progress import duration

    done = [job for job in list_jobs() if job.verb == "align" and state_of(job).state == "done"]
    told = estimate(request, [job.folder for job in done])
    if as_json:
        terminal.print_json(asdict(told) | {"memory": told.memory})
        return
    least, most = map(duration, told.seconds)
    terminal.say(f"steps: {told.steps} of {request.batch_size} pairs")
    terminal.say(f"training: about {least if least == most else f'{least} to {most}'}")
    terminal.say(f"memory: about {size_in_words(told.memory)}")
