"""The command line: one verb a step, each thin over the same functions as the pages."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from analysis.requests import (
    ALL_SETTINGS,
    DEFAULT_ATTACKED,
    DEFAULT_HARMFUL,
    DEFAULT_HARMLESS,
    AlignRequest,
    AttackRequest,
    parse_request,
)
from app import terminal
from app.commands.cache import cache
from app.commands.capability import capability
from app.commands.export import export, figure
from app.commands.identify import identify, scores
from app.commands.jobs import jobs
from app.commands.judges import judges
from app.commands.masks import masks
from app.commands.neuron import neuron
from app.commands.overlap import overlap
from app.commands.patch import patch
from app.commands.redteam import redteam
from app.commands.rounds import rounds
from app.commands.serve import serve, worker
from app.commands.settings import settings
from toolkit.errors import SafeNeuronError
from toolkit.train.recipes import OptimiserName, PresetName, RecipeName, Reference

app = typer.Typer(
    name="safeneuron",
    help="Find the MLP neurons a model's refusals hang on, attack them, and train it to stand "
    "without them.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[str, typer.Argument(help="Embedded name, folder, .gguf file or hub name.")]
Table = Annotated[
    Path | None, typer.Option("--table", help="Write the table to a .md or .csv file too.")
]
Dtype = Literal["float32", "bfloat16", "float16"]


app.command()(identify)
app.command()(scores)


@app.command()
def attack(
    model: Model,
    mask: Annotated[
        Path | None, typer.Option(help="Mask file; identified first when left out.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Attack file.")] = None,
    settings: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, or all: " + ", ".join(ALL_SETTINGS).lower() + ". The first five "
            "when left out, and again on a model trained since the mask was made."
        ),
    ] = None,
    harmful: Annotated[str, typer.Option(help="Prompt set or file.")] = DEFAULT_ATTACKED,
    harmless: Annotated[str, typer.Option(help="Prompt set or file.")] = "harmless-heldout[:60]",
    over_refusal: Annotated[
        str | None,
        typer.Option(help="A .csv such as XSTest's, whose safe prompts are answered too."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Attack all 313 StrongREJECT prompts.")
    ] = False,
    find_harmful: Annotated[
        str, typer.Option(help="Prompts that settings identify on.")
    ] = DEFAULT_HARMFUL,
    find_harmless: Annotated[
        str, typer.Option(help="Prompts that settings identify on.")
    ] = DEFAULT_HARMLESS,
    seeds: Annotated[int, typer.Option(help="Random sets.")] = 5,
    sweep_score: Annotated[
        Literal["es", "sas", "es+sas"], typer.Option(help="Score that sweep removes by.")
    ] = "es+sas",
    sweep_shares: Annotated[
        str, typer.Option(help="Shares that sweep removes, comma-separated.")
    ] = "0.001,0.002,0.005,0.01,0.02,0.05,0.1",
    hold_factors: Annotated[
        str, typer.Option(help="Times that hold undoes a neuron's shift, comma-separated.")
    ] = "1,2",
    hold_at: Annotated[str, typer.Option(help="Constants for hold, comma-separated.")] = "",
    rounds: Annotated[int, typer.Option(help="Of the adaptive attack.")] = 5,
    perplexity_limit: Annotated[
        float, typer.Option(help="Degenerate above it under the whole model; 0 for none.")
    ] = 50.0,
    harm_judge: Annotated[
        str | None,
        typer.Option(help="Asked about complied answers; 'safeneuron judges' lists them."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 48,
    costs: Annotated[
        bool | None,
        typer.Option(
            "--costs/--no-costs",
            help="Measure KL and perplexity on the harmless prompts; by default with all.",
            show_default=False,
        ),
    ] = None,
    cost_tokens: Annotated[
        int, typer.Option(help="Length of the answers that costs are measured on.")
    ] = 32,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 64,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = "bfloat16",
    keep_responses: Annotated[
        bool, typer.Option("--keep-responses", help="Store what the model answered.")
    ] = False,
    table: Table = None,
    force: Annotated[bool, typer.Option("--force", help="Use another model's mask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove neurons and count what is still refused.

    Run again after a kill, it goes on after the last batch that was judged.
    """
    from analysis.study import attack as run
    from toolkit.files import require_writable, write_atomically

    values = {key: value for key, value in locals().items() if key in AttackRequest.model_fields}
    _require_table(table)
    if output is not None:
        require_writable(output)
    if full:
        values["harmful"] = "strongreject"
    if settings is not None:
        named = [name.strip().upper() for name in settings.split(",")]
        values["settings"] = list(ALL_SETTINGS) if named == ["ALL"] else named
        values["costs"] = named == ["ALL"] if costs is None else costs
    values["costs"] = bool(values["costs"])
    values["perplexity_limit"] = perplexity_limit or None
    for field in ("sweep_shares", "hold_factors", "hold_at"):
        values[field] = [part.strip() for part in values[field].split(",") if part.strip()]
    request = parse_request(AttackRequest, values)
    with terminal.progress_bar() as progress:
        done = run(request, progress)
    path = output or done.entry.file("attack.json")
    if output is not None:
        command = ["safeneuron", *sys.argv[1:]]
        told = done.result.model_copy(update={"command": command})
        write_atomically(output, told.model_dump_json(by_alias=True, indent=1) + "\n")
    if as_json:
        terminal.print_json(_attack_summary(done.result) | {"attack": str(path)})
        return
    _print_attacks({model: done.result}, table)
    if done.reused:
        terminal.note("this attack was in the store: no model was run")
    terminal.say(f"attack: {path}")


def _attack_summary(result: Any) -> dict[str, Any]:
    from analysis.robustness import attack_table, finding

    found = finding(result)
    table = attack_table(result)
    return {
        "verdict": found.sentence if found else None,
        "separated": found.separated if found else None,
        "table": table.astype(object).where(table.notna(), None).to_dict("records"),
        "costs": [cost.model_dump() for cost in result.costs],
    }


def _print_attacks(results: dict[str, Any], table_file: Path | None = None) -> None:
    from analysis.comparison import compare_attacks, costs_markdown, markdown, printable
    from analysis.costs import printable_costs
    from analysis.robustness import finding
    from toolkit.files import write_atomically

    table = compare_attacks(results)
    sides = list(dict.fromkeys(table["side"]))
    for side in sides:
        shown = printable(table, side)
        rows = [tuple(map(str, row)) for row in shown.to_numpy()]
        title = f"{side} prompts, k/n with Wilson 95 % intervals"
        terminal.print_table(title, tuple(shown.columns), rows)
    for name, result in results.items():
        if result.costs:
            shown = printable_costs(result)
            rows = [tuple(map(str, row)) for row in shown.to_numpy()]
            title = f"{name}: costs on harmless prompts, with bootstrap 95 % intervals"
            terminal.print_table(title, tuple(shown.columns), rows)
    for name, result in results.items():
        for setting, why in result.left_out.items():
            terminal.say(f"{name}: {setting} left out: {why}")
        if found := finding(result):
            terminal.say(f"{name}: {found.sentence}")
    if table_file is not None:
        as_csv = table_file.suffix == ".csv"
        text = table.to_csv(index=False) if as_csv else markdown(table, sides)
        costed = {} if as_csv else {name: r for name, r in results.items() if r.costs}
        text += "".join(f"\n{costs_markdown(name, result)}" for name, result in costed.items())
        write_atomically(table_file, text)
        terminal.say(f"table: {table_file}")


def _require_table(path: Path | None) -> None:
    from toolkit.files import require_writable

    if path is not None:
        if path.suffix not in (".csv", ".md"):
            raise SafeNeuronError(f"--table {path}: name it .md or .csv")
        require_writable(path)


@app.command()
def compare(
    attacks: Annotated[list[Path], typer.Argument(help="Attack files.")],
    table: Table = None,
    as_json: Json = False,
) -> None:
    """Show attack results side by side, each tested against the first."""
    from analysis.robustness import AttackResult, read_attack

    _require_table(table)
    results: dict[str, AttackResult] = {}
    for path in attacks:
        times = sum(name.partition(" (")[0] == str(path) for name in results)
        name = f"{path} ({times + 1})" if times else str(path)
        results[name] = read_attack(path)
    if as_json:
        terminal.print_json({name: _attack_summary(result) for name, result in results.items()})
        return
    _print_attacks(results, table)


@app.command()
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
    as_json: Json = False,
) -> None:
    """Train with the mask's neurons frozen (frozen-neuron DPO), in a process of its own.

    Run again after a kill or a cancel, it goes on from the last checkpoint.
    """
    from app.launch import run_to_end

    values = {key: value for key, value in locals().items() if key in AlignRequest.model_fields}
    if steps is not None and epochs is not None:
        raise SafeNeuronError("give --steps or --epochs, not both")
    request = parse_request(AlignRequest, values)
    with terminal.progress_bar() as progress:
        result = run_to_end("align", request, output, progress, terminal.note)
    if as_json:
        terminal.print_json(result)
        return
    for name, value in result.items():
        terminal.say(f"{name}: {value}")
    terminal.say(f"model: {output}")


@app.command()
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


@app.command()
def models(as_json: Json = False) -> None:
    """List the embedded models."""
    from toolkit.home import home
    from toolkit.models.sources import EMBEDDED

    kept = home() / "models"
    rows = [
        {
            "name": model.name,
            "description": model.description,
            "wheel": model.wheel.requirement,
            "licence": model.wheel.licence,
            "on disk": any(kept.glob(f"{model.name}-*/config.json")),
        }
        for model in EMBEDDED.values()
    ]
    terminal.print_rows(
        "embedded models; any folder, .gguf file or hub name works too", rows, as_json
    )


@app.command()
def prompts(as_json: Json = False) -> None:
    """List the known prompt sets."""
    from toolkit.prompts import KNOWN

    rows = [
        {
            "name": known.name,
            "prompts": known.count,
            "licence": known.licence,
            "from": known.wheel.requirement if known.wheel else "this project",
            "description": known.description,
        }
        for known in KNOWN.values()
    ]
    terminal.print_rows(
        "known prompt sets; a slice such as advbench[:100] and any file work too", rows, as_json
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of the mask file."""
    from toolkit.masks import json_schema

    terminal.print_json(json_schema())


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the report.")
    ] = None,
    serve_after: Annotated[
        bool, typer.Option("--serve/--no-serve", help="Open the dashboard afterwards.")
    ] = True,
    port: Annotated[int, typer.Option()] = 8501,
    as_json: Json = False,
) -> None:
    """Run the whole method on the embedded model, write a report, serve the dashboard."""
    from app.demo import run_demo

    with terminal.progress_bar() as progress:
        done = run_demo(output, progress)
    if as_json:
        terminal.print_json(done.as_dict())
    else:
        _print_attacks({done.model: done.result})
        terminal.say(f"report: {done.report}")
    if serve_after:
        serve(port=port)


app.command()(serve)
app.command()(worker)
app.add_typer(jobs, name="jobs")
app.add_typer(masks, name="masks")
app.add_typer(settings, name="settings")
app.add_typer(cache, name="cache", invoke_without_command=True)
app.command()(neuron)
app.command()(patch)
app.command()(judges)
app.command()(capability)
app.command()(overlap)
app.command()(export)
app.command()(figure)
app.command()(redteam)
app.command()(rounds)


def main() -> None:
    """Run a command; bad input ends in one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except SafeNeuronError as error:
        terminal.note("safeneuron: " + " ".join(str(error).split()))
        sys.exit(2)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        terminal.note("safeneuron: " + " ".join(message.removeprefix("Value error, ").split()))
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        terminal.note("safeneuron: stopped")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
