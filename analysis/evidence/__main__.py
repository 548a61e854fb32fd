"""Make the page of evidence: run what is missing, draw the figures, write the words.

``python -m analysis.evidence -o docs/analysis.md`` does all of it on the embedded model;
stopped and started again, it goes on where it was. Options are the fields of
:class:`analysis.evidence.gather.EvidenceRequest`; lists are comma-separated.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analysis.evidence.gather import EvidenceRequest, gather
from analysis.evidence.page import write_page
from analysis.exports.images import write_figure
from analysis.requests import parse_request
from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable

ENDINGS = (".png", ".svg", ".html")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.evidence", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/analysis.md"))
    parser.add_argument("--figures", choices=ENDINGS, default=".png")
    for name, field in EvidenceRequest.model_fields.items():
        default = field.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        told = f"{field.description}; " if field.description else ""
        parser.add_argument(
            f"--{name.replace('_', '-')}", help=f"{told}by default {shown}".replace("%", "%%")
        )
    return parser


def request_of(arguments: argparse.Namespace) -> EvidenceRequest:
    """The request that a command line asks for.

    Raises:
        SafeNeuronError: a value is out of range.
    """
    values: dict[str, Any] = {}
    for name, field in EvidenceRequest.model_fields.items():
        given = getattr(arguments, name)
        if given is not None:
            several = isinstance(field.default, tuple)
            values[name] = [p.strip() for p in given.split(",") if p.strip()] if several else given
    return parse_request(EvidenceRequest, values)


def _told(stage: str, done: int, total: int) -> None:
    if done in (0, total):
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {stage}: {done}/{total}\n")
        sys.stderr.flush()


def main() -> int:
    """Write the page; exit code 2 and one line for bad input."""
    arguments = _parser().parse_args()
    try:
        request = request_of(arguments)
        require_writable(arguments.output)
        # A missing browser is told now, not after an hour of work.
        trial = arguments.output.parent / "images" / f".trial{arguments.figures}"
        write_figure(go.Figure(layout={"height": 100}), trial)
        trial.unlink()
        with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its log
            found = gather(request, _told)
        for path in write_page(found, arguments.output, arguments.figures):
            sys.stdout.write(f"{path}\n")
    except SafeNeuronError as error:
        sys.stderr.write("safeneuron: " + " ".join(str(error).split()) + "\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
