"""``safeneuron models``, ``prompts`` and ``schema``: what is known without a model."""

from app import terminal
from app.commands.options import Json


def models(as_json: Json = False) -> None:
    """List the embedded models."""
    from toolkit.home import home
    from toolkit.models.sources import EMBEDDED

    kept = home() / "models"
    rows = [
        {
            "name": model.name,
            "description": model.description,
            "wheel": model.wheel.requirement,
            "licence": model.wheel.licence,
            "on disk": any(kept.glob(f"{model.name}-*/config.json")),
        }
        for model in EMBEDDED.values()
    ]
    terminal.print_rows(
        "embedded models; any folder, .gguf file or hub name works too", rows, as_json
    )


def prompts(as_json: Json = False) -> None:
    """List the known prompt sets."""
    from toolkit.known_prompts import KNOWN

    rows = [
        {
            "name": known.name,
            "prompts": known.count,
            "licence": known.licence,
            "from": known.wheel.requirement if known.wheel else "this project",
            "description": known.description,
        }
        for known in KNOWN.values()
    ]
    terminal.print_rows(
        "known prompt sets; a slice (advbench[:100]), a file, several joined by + work too",
        rows,
        as_json,
    )


def schema() -> None:
    """Print the JSON Schema of the mask file."""
    from toolkit.masks import json_schema

    terminal.print_json(json_schema())
