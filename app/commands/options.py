"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[str, typer.Argument(help="Embedded name, folder, .gguf file or hub name.")]
Table = Annotated[
    Path | None, typer.Option("--table", help="Write the table to a .md or .csv file too.")
]
Dtype = Literal["float32", "bfloat16", "float16"]
