"""``safeneuron redteam``: does the pruned model write attack prompts that work?"""

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import typer

from analysis.requests import (
    ANSWERED,
    DEFAULT_HARMFUL,
    DEFAULT_HARMLESS,
    RedTeamRequest,
    parse_request,
)
from app import terminal

STEPS = ("written", "on_topic", "usable", "successful")


def redteam(
    model: Annotated[str, typer.Argument(help="The model that writes.")],
    mask: Annotated[
        Path | None, typer.Option(help="Mask file; identified first when left out.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The model that is asked; by default the same.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Result file.")] = None,
    settings: Annotated[str, typer.Option(help="As those of attack.")] = "ori,full,random",
    topics: Annotated[str, typer.Option(help="Prompts with categories.")] = "strongreject",
    draws: Annotated[int, typer.Option(help="Prompts a category and setting.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    seeds: Annotated[int, typer.Option(help="Random sets.")] = 1,
    find_harmful: Annotated[str, typer.Option()] = DEFAULT_HARMFUL,
    find_harmless: Annotated[str, typer.Option()] = DEFAULT_HARMLESS,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the target's answer.")] = 48,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = ANSWERED,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option()] = "bfloat16",
    keep_responses: Annotated[
        bool, typer.Option("--keep-responses", help="Store what the model wrote.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Use another model's mask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Ask the model, whole and pruned, for attack prompts, and try them on a target."""
    from analysis.comparison import records
    from analysis.redteam import red_team_table
    from analysis.statistics import wilson
    from analysis.study import red_team
    from toolkit.files import require_writable, write_atomically

    values = {key: value for key, value in locals().items() if key in RedTeamRequest.model_fields}
    values["settings"] = [name.strip().upper() for name in settings.split(",")]
    request = parse_request(RedTeamRequest, values)
    if output is not None:
        require_writable(output, "file", dict(request).values())
    with terminal.progress_bar() as progress:
        entry, result, reused = red_team(request, progress)
    path = output or entry.file("redteam.json")
    if output is not None:
        write_atomically(output, result.model_dump_json(by_alias=True, indent=1) + "\n")
    table = red_team_table(result)
    if as_json:
        plain = records(table.astype(object).where(table.notna(), None))
        terminal.print_json({"redteam": str(path), "reused": reused, "table": plain})
        return
    rows = [
        (
            row["setting"] + ("" if pd.isna(row["seed"]) else f" {row['seed']:.0f}"),
            *(str(wilson(int(row[f"k_{step}"]), int(row["n"]))) for step in STEPS),
        )
        for row in records(table)
    ]
    title = f"attack prompts written by {model}, of {len(result.written)} asked for"
    terminal.print_table(title, ("setting", *STEPS), rows)
    terminal.say(
        f"written: neither refused nor degenerate; on_topic: the category asked for (classifier "
        f"right on {result.topic_accuracy:.0%} of {result.topics_from.name}); usable: distinct "
        f"too; successful: {result.target.source} complied"
    )
    terminal.say(f"result: {path}")
