"""Homes of tests that want the embedded models and no result."""

from pathlib import Path

from toolkit.home import home


def link_models(folder: Path) -> None:
    """Put the models, wheels and hashes of the user's home into a folder, as links."""
    for kept in home().iterdir():
        if kept.name in ("hashes", "models", "wheels"):
            (folder / kept.name).symlink_to(kept)
