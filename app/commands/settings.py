"""``safeneuron settings``: the queue, the devices, the launcher; what the Settings page shows."""

from dataclasses import asdict
from typing import Any

import typer

from app import terminal
from app.commands.options import Json
from app.settings import Settings, change_setting, origin, read_settings

settings = typer.Typer(help="Show or change settings.", rich_markup_mode=None)


def described() -> list[dict[str, Any]]:
    """Each setting: its name, value, where that comes from, and what it is."""
    values = read_settings().model_dump(mode="json")
    return [
        {
            "setting": name,
            "value": ", ".join(value) if isinstance(value, list) else value or "",
            "from": origin(name),
            "meaning": Settings.model_fields[name].description,
        }
        for name, value in values.items()
    ]


@settings.callback(invoke_without_command=True)
def settings_list(context: typer.Context, as_json: Json = False) -> None:
    """Show every setting, and where its value comes from."""
    if context.invoked_subcommand is not None:
        return
    rows = described()
    if as_json:
        terminal.print_json(rows)
        return
    cells = [[str(value) for value in row.values()] for row in rows]
    terminal.print_table("settings", list(rows[0]), cells)


@settings.command("set")
def settings_set(name: str, value: str) -> None:
    """Keep a setting. Lists are separated by commas, folders as in PATH."""
    change_setting(name, value)
    terminal.say(f"{name}: {value} (a worker that runs reads most of them at its next start)")


@settings.command("unset")
def settings_unset(name: str) -> None:
    """Return a setting to its default."""
    change_setting(name, None)
    terminal.say(f"{name}: default")


@settings.command("about")
def settings_about(as_json: Json = False) -> None:
    """Say where things are kept and how large they are, on what jobs run, what is installed."""
    from analysis.listing import size_in_words
    from app.about import devices_now, places, queue_place, versions, workers_now
    from toolkit.home import home

    kept = places()
    if as_json:
        told = {"home": str(home()), "places": [asdict(place) for place in kept]}
        told |= {"queue": queue_place(), "devices": devices_now(), "workers": workers_now()}
        terminal.print_json(told | {"versions": versions()})
        return
    terminal.say(f"home: {home()}")
    sizes = [(place.name, size_in_words(place.size), str(place.files)) for place in kept]
    terminal.print_table("kept", ("folder", "size", "files"), sizes)
    terminal.say(f"queue: {queue_place()}")
    for title, rows in (("devices", devices_now()), ("workers", workers_now())):
        if rows:
            terminal.print_table(title, list(rows[0]), [list(row.values()) for row in rows])
    terminal.print_table("versions", ("package", "version"), list(versions().items()))
