"""Where results, models and prompt sets live on disk."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def home() -> Path:
    """Return the folder for everything kept between runs.

    ``SAFENEURON_HOME`` when set, else the user's cache folder. It is read at each
    call, so that a test or a second study can point elsewhere.
    """
    chosen = os.environ.get("SAFENEURON_HOME")
    return Path(chosen).expanduser() if chosen else user_cache_path("safeneuron")
