"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from toolkit.errors import SafeNeuronError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[str, typer.Argument(help="Embedded name, folder, .gguf file or hub name.")]
Table = Annotated[
    Path | None, typer.Option("--table", help="Write the table to a .md or .csv file too.")
]
Dtype = Literal["float32", "bfloat16", "float16"]


def named_numbers(flag: str, given: list[str] | None) -> dict[str, str]:
    """``NAME=NUMBER`` options as a table; numbers are read by the request."""
    pairs = {}
    for text in given or []:
        name, equals, number = text.partition("=")
        if not equals:
            raise SafeNeuronError(f"{flag} {text}: write NAME=NUMBER, such as t=3")
        pairs[name.strip()] = number.strip()
    return pairs
