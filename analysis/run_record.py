"""What names a run, so that a folder is gone on with only by the run that it holds.

A path may come to name another model or mask, and a number that no request holds may change
with the version: the name is made of what they are, not of where they lie.
"""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from analysis.before_after import ATTACK_FIELDS
from analysis.requests import AlignRequest
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_text
from toolkit.masks import MaskFile
from toolkit.train.recipes import RECIPES

# Fields that change nothing of what is trained, or that are named by what they stand for.
ASIDE = {*ATTACK_FIELDS, "model", "mask", "mixture", "force"}


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
