"""``safeneuron identify`` and ``safeneuron scores``: the neurons, and what they are chosen by."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from analysis.requests import DEFAULT_HARMFUL, DEFAULT_HARMLESS, IdentifyRequest, parse_request
from app import terminal
from app.commands.options import Json, named_numbers


def identify(
    model: Annotated[str, typer.Argument(help="Embedded name, folder, .gguf file or hub name.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Mask file.")] = None,
    harmful: Annotated[str, typer.Option(help="Prompt set or file.")] = DEFAULT_HARMFUL,
    harmless: Annotated[str, typer.Option(help="Prompt set or file.")] = DEFAULT_HARMLESS,
    leave_out: Annotated[
        str | None, typer.Option(help="Prompts to leave out, such as those attacked later.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="A score ('safeneuron scores' lists them), or several with + (union), & "
            "(intersection), - (difference) and parentheses, such as es+sas or snip-utility."
        ),
    ] = "es+sas",
    tau_es: Annotated[float, typer.Option(help="Choose d above this.")] = 2.0,
    tau_sas: Annotated[float, typer.Option(help="Choose z above this.")] = 2.0,
    tau: Annotated[
        list[str] | None, typer.Option(help="SCORE=NUMBER: choose above this by that score.")
    ] = None,
    top: Annotated[float | None, typer.Option(help="Choose this share, 0 to 1.")] = None,
    top_es: Annotated[float | None, typer.Option(help="This share by ES alone.")] = None,
    top_sas: Annotated[float | None, typer.Option(help="This share by SAS alone.")] = None,
    share: Annotated[
        list[str] | None, typer.Option(help="SCORE=SHARE: this share by that score.")
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Shares and rates are of each layer.")
    ] = False,
    fdr: Annotated[
        float | None,
        typer.Option(help="Choose at this false-discovery rate (Benjamini-Hochberg): t, auc."),
    ] = None,
    also: Annotated[str, typer.Option(help="Further scores for the table, comma-separated.")] = "",
    bootstrap: Annotated[
        int, typer.Option(help="Draws for intervals over prompts; 0 for none.")
    ] = 0,
    utility: Annotated[
        str | None, typer.Option(help="Prompts of @utility and @contrast; else the harmless.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The model from before alignment, for change.")
    ] = None,
    position: Annotated[
        Literal["last", "mean", "max"], typer.Option(help="Token position.")
    ] = "last",
    backend: Annotated[
        Literal["torch", "transformerlens", "nnsight"],
        typer.Option(help="What captures activations."),
    ] = "torch",
    answer_tokens: Annotated[
        int, typer.Option(help="Length of the answers that wanda, snip and change read.")
    ] = 32,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 16,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Find a model's safety neurons and write them as a mask."""
    from analysis.study import identify as run
    from toolkit.files import require_writable

    values = {key: value for key, value in locals().items() if key in IdentifyRequest.model_fields}
    values["tau"] = named_numbers("--tau", tau)
    values["share"] = named_numbers("--share", share)
    values["also"] = [name.strip() for name in also.split(",") if name.strip()]
    request = parse_request(IdentifyRequest, values)
    if output is not None:
        require_writable(output, "file", dict(request).values())
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
        terminal.note("what the scores read was in the store: no model was run")
    terminal.say(f"scores: {found.entry.file('scores.parquet')}")
    terminal.say(f"mask: {path}")


def scores(
    as_json: Json = False,
) -> None:
    """List the scores that neurons can be chosen by."""
    from analysis.scores import all_scores

    rows = [
        {
            "name": score.name,
            "reads": score.reads,
            "threshold": score.tau,
            "p-value": score.p_value is not None,
            "what": score.title,
            "source": score.source,
        }
        for score in all_scores().values()
    ]
    if as_json:
        terminal.print_json(rows)
        return
    shown = [
        (
            str(row["name"]),
            "-" if row["threshold"] is None else f"{row['threshold']:g}",
            "yes" if row["p-value"] else "-",
            str(row["what"]),
            str(row["source"]),
        )
        for row in rows
    ]
    terminal.print_table("scores", ("score", "threshold", "p", "what it is", "source"), shown)
    terminal.say(
        "score@utility measures on the utility prompts, score@contrast is harmful minus utility"
    )
