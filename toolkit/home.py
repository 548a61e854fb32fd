"""Where results, models and prompt sets live on disk."""

import os
from pathlib import Path

from platformdirs import user_cache_path

from toolkit.errors import SafeNeuronError


def home() -> Path:
    """Return the folder for everything kept between runs.

    ``SAFENEURON_HOME`` when set, else the user's cache folder. It is read at each
    call, so that a test or a second study can point elsewhere.

    Raises:
        SafeNeuronError: it is a file.
    """
    chosen = os.environ.get("SAFENEURON_HOME")
    found = Path(chosen).expanduser() if chosen else user_cache_path("safeneuron")
    if found.is_file():
        raise SafeNeuronError(f"SAFENEURON_HOME is the file {found}; name a folder")
    return found
