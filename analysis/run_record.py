"""What names a run, so that a folder is gone on with only by the run that it holds.

A path may come to name another model, mask or file of pairs, and a number that no request holds
may change with the version: the name is made of what they are, not of where they lie.
"""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from analysis.align_requests import AlignRequest
from analysis.before_after import ATTACK_FIELDS
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_file, sha256_text
from toolkit.masks import MaskFile
from toolkit.models.sources import CARD
from toolkit.train.recipes import RECIPES

RECORD = "run.json"
"""Which run a folder holds, as long as it has not ended; then its card says so."""
# Fields that change nothing of what is trained, or that are named by what they stand for.
ASIDE = {*ATTACK_FIELDS, "model", "mask", "mixture", "force"}
FILES = ("pairs", "safety", "general", "foundation")


def request_key(
    request: AlignRequest, parent: str, mask: MaskFile | None, aside: Collection[str] = ()
) -> str:
    """Name what is asked for.

    Args:
        request: what is asked for; what only the attack after training reads is left out.
        parent: fingerprint of the request's model.
        mask: the request's.
        aside: further fields to leave out.
    """
    asked = request.model_dump(mode="json", exclude={*ASIDE, *aside})
    asked |= {"parent": parent, "mask": mask.sha256 if mask else None}
    for name in FILES:
        # What is no file here is a name on the hub.
        if asked[name] is not None and Path(asked[name]).is_file():
            asked[name] = sha256_file(Path(asked[name]))
    if RECIPES[request.recipe].draws:
        asked["mixture"] = asdict(request.drawn())
    return sha256_text(canonical_json(asked))


def recorded_key(record: Path) -> str:
    """The key in the record of a run.

    Raises:
        SafeNeuronError: it has none.
    """
    try:
        return str(json.loads(record.read_text("utf-8"))["request_key"])
    except (ValueError, KeyError, TypeError) as error:
        raise SafeNeuronError(
            f"{record} does not say which run it is of; delete it if the folder is this run's, or "
            "choose another -o folder"
        ) from error


def require_own(folder: Path, key: str) -> None:
    """Go on with what a folder holds only where it is the same run.

    Raises:
        SafeNeuronError: it is another's, or does not say.
    """
    held = {RECORD: "another run, which has not ended", CARD: "the model of another run"}
    for name, what in held.items():
        if (folder / name).is_file() and recorded_key(folder / name) != key:
            raise SafeNeuronError(
                f"{folder} holds {what}: other numbers, or another model, mask or pairs; choose "
                "another -o folder"
            )


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a trained model with its weights."""
    named = all((folder / name).is_file() for name in (CARD, "config.json"))
    return named and any(folder.glob("*.safetensors"))
