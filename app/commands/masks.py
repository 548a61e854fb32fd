"""``safeneuron masks``: what the Masks page does: the library, set algebra, neurons by hand."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app import terminal
from app.commands.options import Json
from toolkit.errors import SafeNeuronError

if TYPE_CHECKING:
    from analysis.mask_library import Card
    from toolkit.masks import MaskFile

Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Mask file; into the library when left out.")
]
Places = Annotated[list[str] | None, typer.Option(metavar="LAYER:NEURON", help="May be repeated.")]
PLACE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")

masks = typer.Typer(help="List, combine, edit and import masks.", rich_markup_mode=None)


@masks.callback(invoke_without_command=True)
def masks_default(context: typer.Context, as_json: Json = False) -> None:
    """List the masks at hand: working ones, kept ones, those of studies."""
    if context.invoked_subcommand is None:
        masks_list(as_json)


@masks.command("ls")
def masks_list(as_json: Json = False) -> None:
    """List the masks at hand: working ones, kept ones, those of studies."""
    from analysis.mask_library import cards

    rows = [
        {
            "mask": card.sha256[:12],
            "from": card.origin,
            "model": card.source,
            "method": card.method,
            "neurons": card.count,
            "share": f"{card.fraction:.2%}",
            "file": str(card.path),
        }
        for card in cards()
    ]
    terminal.print_rows("masks", rows, as_json)


@masks.command("combine")
def masks_combine(
    operation: Annotated[
        Literal["union", "intersection", "difference"],
        typer.Argument(help="difference: the first without the others."),
    ],
    files: Annotated[list[str], typer.Argument(help="Mask files, or hashes as 'masks' has them.")],
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Unite masks, intersect them, or take masks from the first."""
    from analysis.mask_library import combine

    _write(combine([_read(name) for name in files], operation), output, as_json)


@masks.command("edit")
def masks_edit(
    file: Annotated[str, typer.Argument(help="A mask file, or a hash as 'masks' has it.")],
    add: Places = None,
    take: Places = None,
    output: Output = None,
    working: Annotated[
        bool,
        typer.Option("--working", help="Change the working mask of that mask's model instead."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Add neurons to a mask, or take some from it."""
    from analysis.mask_library import change_working, edit, working_path

    mask, more, fewer = _read(file), _places(add), _places(take)
    if not working:
        _write(edit(mask, more, fewer), output, as_json)
        return
    if output is not None:
        raise SafeNeuronError("the working mask has a place of its own: leave -o or --working out")
    changed = change_working(mask, more, fewer)
    _say(changed, working_path(mask.model.fingerprint), as_json)


@masks.command("import")
def masks_import(
    file: Annotated[Path, typer.Argument(help="A mask file.")], as_json: Json = False
) -> None:
    """Check a mask from elsewhere and put it into the library."""
    from toolkit.masks import read_mask

    _write(read_mask(file), None, as_json)


@masks.command("rm")
def masks_remove(
    name: Annotated[str, typer.Argument(help="Its hash, or how that begins.")],
    as_json: Json = False,
) -> None:
    """Remove a kept mask or a working one; those of studies go with their study."""
    from analysis.mask_library import discard

    found = [card for card in _named(name) if card.origin != "study"] or _named(name)
    discard(found[0])
    terminal.print_rows("removed", [{"mask": found[0].sha256[:12]}], as_json)


def _named(name: str) -> "list[Card]":
    """The cards of one mask; the same neurons may be kept and a study's.

    Raises:
        SafeNeuronError: no mask's hash begins so, or several do.
    """
    from analysis.mask_library import cards

    found = [card for card in cards() if name and card.sha256.startswith(name)]
    if len({card.sha256 for card in found}) != 1:
        told = "several masks begin so" if found else f"no mask {name[:60]!r}"
        raise SafeNeuronError(f"{told}; 'safeneuron masks' lists them")
    return found


def _read(name: str) -> "MaskFile":
    from toolkit.masks import read_mask

    path = Path(name)
    return read_mask(path if path.exists() or path.suffix else _named(name)[0].path)


def _places(texts: list[str] | None) -> list[tuple[int, int]]:
    found = []
    for text in texts or []:
        match = PLACE.fullmatch(text.strip())
        if match is None:
            raise SafeNeuronError(f"{text[:40]!r} is no neuron: write LAYER:NEURON, such as 12:345")
        found.append((int(match[1]), int(match[2])))
    return found


def _write(mask: "MaskFile", output: Path | None, as_json: bool) -> None:
    from analysis.mask_library import keep

    if output is not None:
        if output.exists():
            _require_mask(output)
        mask.write(output)
    _say(mask, output or keep(mask), as_json)


def _require_mask(path: Path) -> None:
    """A mask may take a mask's place, but no other file's."""
    from toolkit.masks import read_mask

    try:
        read_mask(path)
    except SafeNeuronError as error:
        raise SafeNeuronError(f"{path} is there already and no mask; choose another -o") from error


def _say(mask: "MaskFile", path: Path, as_json: bool) -> None:
    told: dict[str, Any] = {"mask": mask.sha256[:12], "neurons": mask.count, "file": str(path)}
    if as_json:
        terminal.print_json(told)
    else:
        terminal.say(f"{mask.count} neurons ({mask.fraction:.2%}): {path}")
