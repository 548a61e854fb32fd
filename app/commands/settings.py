"""``safeneuron settings``: the queue, the devices, the launcher; what the Settings page shows."""

from typing import Annotated, Any

import typer

from app import terminal
from app.settings import Settings, change_setting, origin, read_settings

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

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
