"""``safeneuron capability``: lm-evaluation-harness with the neurons removed."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from analysis.requests import (
    CAPABILITY_TASKS,
    DEFAULT_HARMFUL,
    DEFAULT_HARMLESS,
    CapabilityRequest,
    parse_request,
)
from app import terminal


def capability(
    model: Annotated[str, typer.Argument(help="Embedded name, folder, .gguf file or hub name.")],
    mask: Annotated[
        Path | None, typer.Option(help="Mask file; identified first where one is needed.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Result file.")] = None,
    settings: Annotated[str, typer.Option(help="As those of attack.")] = "ori,full,random",
    tasks: Annotated[
        str, typer.Option(help="Tasks, groups or tags of lm-evaluation-harness.")
    ] = ",".join(CAPABILITY_TASKS),
    limit: Annotated[
        int | None, typer.Option(help="Only this many questions of each task.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Examples before each question; a task's own by default.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put questions as chat messages.")
    ] = False,
    include_path: Annotated[
        Path | None,
        typer.Option(help="Folder of task files; their data files are found from there."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Random sets.")] = 1,
    find_harmful: Annotated[str, typer.Option()] = DEFAULT_HARMFUL,
    find_harmless: Annotated[str, typer.Option()] = DEFAULT_HARMLESS,
    batch_size: Annotated[int, typer.Option(help="Questions at a time.")] = 16,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option()] = "bfloat16",
    force: Annotated[bool, typer.Option("--force", help="Use another model's mask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure what removing neurons costs in capability; needs the extra 'capability'.

    Run again after a kill, it goes on after the last task that was finished.
    """
    # The harness's own bars would stand between the lines; they are set at its first import.
    os.environ.setdefault("TQDM_DISABLE", "1")

    from analysis.capability import capability as run
    from analysis.capability import printable_capability
    from toolkit.files import require_writable, write_atomically

    values = {
        key: value for key, value in locals().items() if key in CapabilityRequest.model_fields
    }
    values["settings"] = [name.strip().upper() for name in settings.split(",")]
    values["tasks"] = [name.strip() for name in tasks.split(",") if name.strip()]
    request = parse_request(CapabilityRequest, values)
    if output is not None:
        require_writable(output, "file", dict(request).values())
    with terminal.progress_bar() as progress:
        done = run(request, progress)
    path = output or done.entry.file("capability.json")
    if output is not None:
        write_atomically(output, done.result.model_dump_json(by_alias=True, indent=1) + "\n")
    if as_json:
        scores = [score.model_dump() for score in done.result.scores]
        terminal.print_json({"capability": str(path), "reused": done.reused, "scores": scores})
        return
    shown = printable_capability(done.result)
    rows = [tuple(map(str, row)) for row in shown.to_numpy()]
    title = f"capability of {model}, with 95 % intervals"
    terminal.print_table(title, tuple(shown.columns), rows)
    if request.limit is not None:
        terminal.say(f"the first {request.limit} questions of each task: not the published figures")
    if done.reused:
        terminal.note("this was in the store: no model was run")
    terminal.say(f"capability: {path}")
