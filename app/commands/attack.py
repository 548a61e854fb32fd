"""``safeneuron attack`` and ``safeneuron compare``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from analysis.requests import (
    ALL_SETTINGS,
    ANSWERED,
    DEFAULT_ATTACKED,
    DEFAULT_HARMFUL,
    DEFAULT_HARMLESS,
    AttackRequest,
    parse_request,
)
from app import terminal
from app.commands.options import Dtype, Json, Model, Table
from toolkit.errors import SafeNeuronError


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
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = ANSWERED,
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
    if output is not None:
        require_writable(output, "file", dict(request).values())
    with terminal.progress_bar() as progress:
        done = run(request, progress)
    path = output or done.entry.file("attack.json")
    if output is not None:
        command = ["safeneuron", *sys.argv[1:]]
        told = done.result.model_copy(update={"command": command})
        write_atomically(output, told.model_dump_json(by_alias=True, indent=1) + "\n")
    if as_json:
        from analysis.comparison import summary

        terminal.print_json(summary(done.result) | {"attack": str(path)})
        return
    print_attacks({model: done.result}, table)
    if done.reused:
        terminal.note("this attack was in the store: no model was run")
    terminal.say(f"attack: {path}")


def print_attacks(results: dict[str, Any], table_file: Path | None = None) -> None:
    """Tables of attacks by their names, what was left out, and what they found."""
    from analysis.comparison import compare_attacks, costs_markdown, markdown, printable
    from analysis.costs import printable_costs
    from analysis.robustness import finding, unheard_judge
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
        if why := unheard_judge(result):
            terminal.note(f"{name}: {why}")
    if table_file is not None:
        as_csv = table_file.suffix == ".csv"
        text = table.to_csv(index=False) if as_csv else markdown(table, sides)
        costed = {} if as_csv else {name: r for name, r in results.items() if r.costs}
        text += "".join(f"\n{costs_markdown(name, result)}" for name, result in costed.items())
        write_atomically(table_file, text)
        terminal.say(f"table: {table_file}")


def _require_table(path: Path | None, inputs: Sequence[Path] = ()) -> None:
    from toolkit.files import require_writable

    if path is not None:
        if path.suffix not in (".csv", ".md"):
            raise SafeNeuronError(f"--table {path}: name it .md or .csv")
        require_writable(path, "file", inputs)


def compare(
    attacks: Annotated[list[Path], typer.Argument(help="Attack files.")],
    table: Table = None,
    as_json: Json = False,
) -> None:
    """Show attack results side by side, each tested against the first."""
    from analysis.robustness import AttackResult, read_attack

    _require_table(table, attacks)
    results: dict[str, AttackResult] = {}
    for path in attacks:
        times = sum(name.partition(" (")[0] == str(path) for name in results)
        name = f"{path} ({times + 1})" if times else str(path)
        results[name] = read_attack(path)
    if as_json:
        from analysis.comparison import summary

        terminal.print_json({name: summary(result) for name, result in results.items()})
        return
    print_attacks(results, table)
