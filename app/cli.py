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
    IdentifyRequest,
    parse_request,
)
from app import terminal
from app.commands.capability import capability
from app.commands.jobs import jobs
from app.commands.judges import judges
from app.commands.redteam import redteam
from app.commands.serve import serve, worker
from app.commands.settings import settings
from toolkit.errors import SafeNeuronError

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
Backend = Literal["torch", "transformerlens", "nnsight"]
Position = Literal["last", "mean", "max"]
Dtype = Literal["float32", "bfloat16", "float16"]


@app.command()
def identify(
    model: Model,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Mask file.")] = None,
    harmful: Annotated[str, typer.Option(help="Prompt set or file.")] = DEFAULT_HARMFUL,
    harmless: Annotated[str, typer.Option(help="Prompt set or file.")] = DEFAULT_HARMLESS,
    method: Annotated[
        Literal["es", "sas", "es+sas"], typer.Option(help="Score, or the union of both.")
    ] = "es+sas",
    tau_es: Annotated[float, typer.Option(help="Choose d above this.")] = 2.0,
    tau_sas: Annotated[float, typer.Option(help="Choose z above this.")] = 2.0,
    top: Annotated[float | None, typer.Option(help="Choose this share, 0 to 1.")] = None,
    top_es: Annotated[float | None, typer.Option(help="This share by ES alone.")] = None,
    top_sas: Annotated[float | None, typer.Option(help="This share by SAS alone.")] = None,
    position: Annotated[Position, typer.Option(help="Token position.")] = "last",
    backend: Annotated[Backend, typer.Option(help="What captures activations.")] = "torch",
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 16,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = "float32",
    as_json: Json = False,
) -> None:
    """Find a model's safety neurons and write them as a mask."""
    from analysis.study import identify as run
    from toolkit.files import require_writable

    if output is not None:
        require_writable(output)
    request = parse_request(
        IdentifyRequest,
        {
            "model": model,
            "harmful": harmful,
            "harmless": harmless,
            "method": method,
            "tau_es": tau_es,
            "tau_sas": tau_sas,
            "top": top,
            "top_es": top_es,
            "top_sas": top_sas,
            "position": position,
            "backend": backend,
            "batch_size": batch_size,
            "dtype": dtype,
        },
    )
    with terminal.progress_bar() as progress:
        found = run(request, progress)
    path = output or found.entry.file("mask.json")
    if output is not None:
        found.mask.write(output)
    if as_json:
        summary = {"mask": str(path), "reused": found.reused, "entry": found.entry.key}
        terminal.print_json(summary | found.entry.summary)
        return
    mask = found.mask
    counts = mask.neuron_set().counts()
    rows = [
        (str(layer), str(int(n)), f"{n / width:.2%}" if width else "-")
        for layer, (n, width) in enumerate(zip(counts, mask.model.neurons_per_layer, strict=True))
    ]
    terminal.print_table(found.entry.title, ("layer", "neurons", "share of the layer"), rows)
    terminal.say(f"{mask.count} of {mask.model.neurons} neurons ({mask.fraction:.2%})")
    if found.reused:
        terminal.note("activations were in the store: no model was run")
    terminal.say(f"mask: {path}")


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
        bool, typer.Option("--full", help="All 313 StrongREJECT and 200 harmless prompts.")
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
        values |= {"harmful": "strongreject", "harmless": "harmless-heldout"}
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
    recipe: Annotated[Literal["dpo", "safeneuron"], typer.Option()] = "safeneuron",
    zero: Annotated[
        bool, typer.Option("--zero/--no-zero", help="Zero the frozen neurons while training.")
    ] = True,
    pairs: Annotated[
        Path | None, typer.Option(help="Preference pairs; made from the model by default.")
    ] = None,
    harmful: Annotated[str, typer.Option(help="Prompts for made pairs.")] = "advbench[::2]",
    harmless: Annotated[str, typer.Option(help="Prompts for made pairs.")] = "harmless-train",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 72,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 4e-5,
    weight_decay: Annotated[float, typer.Option()] = 0.05,
    beta: Annotated[float, typer.Option(help="Of DPO.")] = 0.1,
    sft_weight: Annotated[float, typer.Option(help="Of the SFT loss on chosen.")] = 0.2,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and answer.")] = 256,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of a made answer.")] = 64,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; a quarter of the run.")
    ] = None,
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
    _print_rows("embedded models; any folder, .gguf file or hub name works too", rows, as_json)


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
    _print_rows(
        "known prompt sets; a slice such as advbench[:100] and any file work too", rows, as_json
    )


def _print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        terminal.print_json(rows)
    elif rows:
        cells = [[str(value) for value in row.values()] for row in rows]
        terminal.print_table(title, list(rows[0]), cells)
    else:
        terminal.say("nothing yet: 'safeneuron demo' makes a first study")


cache = typer.Typer(help="List, check or remove stored results.", rich_markup_mode=None)
app.add_typer(cache, name="cache", invoke_without_command=True)


@cache.callback()
def cache_list(context: typer.Context, as_json: Json = False) -> None:
    """List stored results, newest first."""
    if context.invoked_subcommand is not None:
        return
    from analysis.store import Store

    rows = [
        {
            "kind": entry.kind,
            "key": entry.key,
            "what": entry.title,
            "made": f"{entry.created:%Y-%m-%d %H:%M}",
            "kB": entry.size // 1000,
        }
        for entry in Store().entries()
    ]
    _print_rows(f"results under {Store().root}", rows, as_json)


@cache.command("verify")
def cache_verify(as_json: Json = False) -> None:
    """Check every file of every result; damaged results are set aside."""
    from analysis.store import Store

    store = Store()
    rows = [
        {"kind": e.kind, "key": e.key, "whole": store.get(e.kind, e.key) is not None}
        for e in store.entries()
    ]
    _print_rows("checked", rows, as_json)


@cache.command("rm")
def cache_remove(kind: str, key: str, as_json: Json = False) -> None:
    """Remove one result."""
    from analysis.store import Store

    Store().remove(kind, key)
    _print_rows("removed", [{"kind": kind, "key": key}], as_json)


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
app.add_typer(settings, name="settings")
app.command()(judges)
app.command()(capability)
app.command()(redteam)


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
