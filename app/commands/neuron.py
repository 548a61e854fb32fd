"""``safeneuron neuron``: everything known of one neuron."""

from typing import Annotated, Literal

import typer

from analysis.requests import DEFAULT_HARMFUL, DEFAULT_HARMLESS, parse_request
from app import terminal
from app.commands.options import Json


def neuron(
    model: Annotated[str, typer.Argument(help="Embedded name, folder, .gguf file or hub name.")],
    layer: Annotated[int, typer.Argument(help="Counted from 0.")],
    neuron: Annotated[int, typer.Argument(metavar="INDEX", help="In its layer, from 0.")],
    harmful: Annotated[str, typer.Option(help="Prompt set or file.")] = DEFAULT_HARMFUL,
    harmless: Annotated[str, typer.Option(help="Prompt set or file.")] = DEFAULT_HARMLESS,
    position: Annotated[
        Literal["last", "mean", "max"], typer.Option(help="Token position.")
    ] = "last",
    also: Annotated[
        str, typer.Option(help="Scores to measure besides es, sas, t and the stored ones.")
    ] = "",
    utility: Annotated[str | None, typer.Option(help="Prompts of @utility.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that change compares with.")] = None,
    prompts_shown: Annotated[int, typer.Option(help="Strongest prompts.")] = 5,
    tokens_shown: Annotated[int, typer.Option(help="Promoted and suppressed tokens.")] = 15,
    neighbours: Annotated[int, typer.Option(help="Nearest by output direction.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 16,
    as_json: Json = False,
) -> None:
    """Show one neuron: its scores, what it fires on, what it writes, which masks have it."""
    from analysis.neuron import NeuronRequest, neuron_page

    values = {key: value for key, value in locals().items() if key in NeuronRequest.model_fields}
    values["also"] = [name.strip() for name in also.split(",") if name.strip()]
    request = parse_request(NeuronRequest, values)
    with terminal.progress_bar() as progress:
        page = neuron_page(request, progress)
    if as_json:
        terminal.print_json(page.model_dump(mode="json", by_alias=True))
        return
    terminal.print_table(
        f"neuron {neuron} of layer {layer} of {model}",
        ("score", "value", "rank", "percentile", "in its layer", "p"),
        [
            (
                one.score,
                f"{one.value:.4g}",
                f"{one.rank}/{one.of}",
                f"{one.percentile:.2f}",
                f"{one.rank_in_layer}/{one.of_layer}",
                "-" if one.p is None else f"{one.p:.2g}",
            )
            for one in page.scores
        ],
    )
    measured = page.measured
    terminal.print_table(
        f"activation at the {position} position",
        ("prompts", "n", "mean", "deviation", "5 %", "median", "95 %"),
        [
            (
                side,
                str(len(found.values)),
                *(f"{x:.4g}" for x in (found.mean, found.std)),
                *(f"{found.quantiles[q]:.4g}" for q in ("0.05", "0.5", "0.95")),
            )
            for side, found in measured.distributions.items()
        ],
    )
    terminal.print_table(
        f"strongest prompts; {measured.rule}",
        ("prompts", "activation", "at", "the message"),
        [
            (
                f"{strong.side} {strong.index}",
                f"{strong.activation:.4g}",
                repr(strong.tokens[strong.token].text),
                "".join(t.text for t in strong.tokens if t.left_out != "template").strip(),
            )
            for strong in measured.strongest
        ],
    )
    for name, effects in (("promotes", measured.promoted), ("suppresses", measured.suppressed)):
        terminal.say(f"{name}: " + " ".join(repr(effect.token) for effect in effects))
    near = (f"{n.layer}:{n.neuron} ({n.cosine:.2f})" for n in measured.neighbours)
    terminal.say("writes as: " + ", ".join(near))
    for mask in page.masks:
        chosen = f" (by {', '.join(mask.parts)})" if mask.parts else ""
        said = f"in{chosen}" if mask.member else "not in"
        terminal.say(f"{said}: {mask.title}, {mask.count} neurons, {mask.entry[:12]}")
    if page.reused:
        terminal.note("all of it was in the store: no model was run")
