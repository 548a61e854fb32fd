"""A model's kin: itself and the models it was trained from, whose masks name its neurons too."""

import json
from pathlib import Path

from analysis.estimate import local_folder
from analysis.mask_library import cards
from app.dashboard import data
from app.dashboard.data import Choice
from app.dashboard.inside import is_inside
from app.jobs.folder import list_jobs
from toolkit.models.sources import CARD


def parents(model: str) -> list[str]:
    """The models that an aligned one was trained from by jobs, newest first."""
    asked = {str(j.folder): str(j.request.get("model")) for j in list_jobs() if j.verb == "align"}
    found: list[str] = []
    while model in asked and asked[model] not in found:
        model = asked[model]
        found.append(model)
    return found


def split_masks(model: str) -> tuple[list[Choice], list[Choice]]:
    """Masks at hand: those made for a model or for one that it was trained from, and the others.

    Nothing is hashed for it: a model is known by its name, by results on it, and by its card.
    """
    names = {model, *parents(model)}
    known = (*data.studies(), *data.attacks())
    prints = {
        entry.summary.get("fingerprint") for entry in known if entry.summary["model"] in names
    }
    prints |= _ancestors(model)
    own: list[Choice] = []
    others: list[Choice] = []
    for card in cards():
        if card.count:
            fits = card.source in names or card.fingerprint in prints
            (own if fits else others).append(Choice(str(card.path), data.mask_label(card)))
    return own, others


def _ancestors(model: str) -> set[str]:
    """The fingerprints that a model's card says it was trained from."""
    at_hand = {choice.value for choice in data.model_choices()}
    folder = local_folder(model) if model in at_hand or is_inside(Path(model)) else None
    try:
        return (
            set() if folder is None else set(json.loads((folder / CARD).read_text())["ancestors"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # it has no card, or one that was edited
