"""``safeneuron cache``: what is in the store, in words; check, show, export, remove."""

from pathlib import Path
from typing import Annotated

import typer

from app import terminal
from app.commands.options import Json

cache = typer.Typer(
    help="List, show, check, export or remove stored results.", rich_markup_mode=None
)

Kind = Annotated[str, typer.Argument(help="As 'safeneuron cache' lists it.")]
Key = Annotated[str, typer.Argument(help="The key, or how it begins.")]


@cache.callback()
def cache_of_results(context: typer.Context, as_json: Json = False) -> None:
    """List stored results, newest first, in words."""
    if context.invoked_subcommand is None:
        ls(as_json=as_json)


@cache.command()
def ls(
    kind: Annotated[str | None, typer.Option(help="Of this kind alone.")] = None,
    as_json: Json = False,
) -> None:
    """List stored results: what, of which model, from which prompts, by what, and why."""
    from analysis.listing import listing
    from analysis.store import Store

    store = Store()
    rows = listing(store.entries(kind))
    newer = store.newer()
    if as_json:
        terminal.print_json(rows)
    elif newer and not rows:
        terminal.say("nothing that this version reads")
    else:
        short = [{**row, "key": row["key"][:12]} for row in rows]
        terminal.print_rows(f"results under {store.root}", short, as_json)
    for line in newer:
        terminal.note(line)


@cache.command()
def show(kind: Kind, key: Key, as_json: Json = False) -> None:
    """Say everything about one result."""
    from analysis.listing import described
    from analysis.store import Store

    told = described(Store().one(kind, key))
    if as_json:
        terminal.print_json([{"name": name, "text": text} for name, text in told])
        return
    width = max(len(name) for name, _ in told)
    for name, text in told:
        terminal.say(f"{name:<{width}}  {text}")


@cache.command()
def verify(as_json: Json = False) -> None:
    """Check every file of every result; damaged results are set aside, to be made again."""
    from analysis.manifest import NewerVersionError
    from analysis.store import Store

    store = Store()
    rows = []
    for kind, key in store.places():
        try:
            found = "whole" if store.get(kind, key) else "damaged: set aside"
        except NewerVersionError:
            found = "of a newer version: not checked"
        rows.append({"kind": kind, "key": key, "state": found, "whole": found == "whole"})
    terminal.print_rows("checked", rows, as_json)


@cache.command()
def rm(kind: Kind, key: Key, as_json: Json = False) -> None:
    """Remove one result."""
    from analysis.store import Store

    store = Store()
    entry = store.one(kind, key)
    store.remove(kind, entry.key)
    terminal.print_rows("removed", [{"kind": kind, "key": entry.key}], as_json)


@cache.command()
def export(
    kind: Kind,
    key: Key,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to make, or a .zip.")],
    as_json: Json = False,
) -> None:
    """Copy one result, checked, with its manifest, to a folder or a .zip file."""
    from analysis.opening import export_entry
    from analysis.store import Store

    store = Store()
    export_entry(store, store.one(kind, key), output)
    rows = [{"kind": kind, "key": key, "to": str(output)}]
    terminal.print_rows("exported", rows, as_json)
