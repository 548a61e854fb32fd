"""``safeneuron demo``: the whole method on the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

from app import terminal
from app.commands.attack import print_attacks
from app.commands.options import Json
from app.commands.serve import serve


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
        print_attacks({done.model: done.result})
        terminal.say(f"report: {done.report}")
    if serve_after:
        serve(port=port)
