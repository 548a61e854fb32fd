"""Settings of an installation: ``settings.json`` under ``SAFENEURON_HOME``, and its environment.

They are changed at the command line alone. A launcher is a command that this machine will
run, and whoever can open a page must not be able to choose one.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import SafeNeuronError
from toolkit.files import write_atomically
from toolkit.home import home

PREFIX = "SAFENEURON_"


class Settings(BaseModel):
    """What an installation is told once. Each is also ``SAFENEURON_`` and its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queue: str = Field(
        default="",
        pattern=r"^$|^(sqlite:///.+|rediss?://.+|postgres(ql)?://.+)",
        description="where jobs wait: sqlite:///FILE, redis://HOST or postgresql://HOST/NAME",
    )
    devices: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9:._-]{1,40}$")], ...] = Field(
        default=(),
        description="one heavy job runs on each: cpu, cuda:0, ...; found out when left empty",
    )
    launcher: str = Field(
        default="",
        description="what jobs are started through: 'accelerate launch', 'srun --gpus 1', "
        "'ray job submit --', 'sky exec CLUSTER --'",
    )
    launches: Literal["training", "everything"] = Field(
        default="training", description="which jobs go through the launcher"
    )
    launched_elsewhere: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="launched jobs at once, when they run on other machines; 0 when they run "
        "here and take every device",
    )
    python: str = Field(
        default="", description="the Python that a launcher starts; this one when left empty"
    )
    folders: tuple[Path, ...] = Field(
        default=(), description="folders beside the store that pages may read models and files from"
    )
    sign_in: Path | None = Field(
        default=None, description="a secrets.toml whose [auth] part switches on sign-in by OIDC"
    )
    allowed: tuple[str, ...] = Field(
        default=(), description="who may sign in: addresses, or @domain; everybody when empty"
    )

    def prefix(self) -> list[str]:
        """The launcher as words.

        Raises:
            SafeNeuronError: its quotes do not close.
        """
        try:
            return shlex.split(self.launcher)
        except ValueError as error:
            raise SafeNeuronError(
                f"launcher {self.launcher!r}: {error}; mend its quotes"
            ) from error

    def interpreter(self) -> str:
        """The Python that runs a job."""
        return self.python or sys.executable


def settings_file() -> Path:
    """Where settings are kept."""
    return home() / "settings.json"


def _kept() -> dict[str, object]:
    path = settings_file()
    try:
        kept = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SafeNeuronError(f"{path} is not JSON; mend it or delete it") from error
    if not isinstance(kept, dict):
        raise SafeNeuronError(f"{path} holds no settings; mend it or delete it")
    return kept


def _of_environment() -> dict[str, object]:
    found = {name: os.environ.get(PREFIX + name.upper()) for name in Settings.model_fields}
    return {name: parse_value(name, text) for name, text in found.items() if text is not None}


def parse_value(name: str, text: str) -> object:
    """A setting's value from its text: lists are separated by commas, folders as in PATH."""
    if name == "folders":
        return [part for part in text.split(os.pathsep) if part]
    if name in {"devices", "allowed"}:
        return [part.strip() for part in text.split(",") if part.strip()]
    if name == "sign_in":
        return text or None
    return text


def read_settings() -> Settings:
    """The settings now: the environment's, else the kept ones, else the defaults.

    Raises:
        SafeNeuronError: one is unknown or no good.
    """
    return _validated(_kept() | _of_environment())


def _validated(values: dict[str, object]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        if first["type"] == "extra_forbidden":
            known = ", ".join(Settings.model_fields)
            raise SafeNeuronError(f"no setting {name[:40]!r}; there are {known}") from error
        given = str(first["input"])[:60]
        raise SafeNeuronError(f"setting {name} {given!r}: {first['msg']}") from error


def change_setting(name: str, text: str | None) -> Settings:
    """Keep a setting, or with None return to its default.

    Raises:
        SafeNeuronError: there is no such setting, or the value is no good.
    """
    kept = {key: value for key, value in _kept().items() if key != name}
    if text is not None:
        kept[name] = parse_value(name, text)
    elif name not in Settings.model_fields:
        _validated({name: None})
    settings = _validated(kept)
    settings.prefix()
    write_atomically(settings_file(), json.dumps(kept, indent=1) + "\n")
    return settings


def origin(name: str) -> str:
    """Where a setting's value comes from, in words."""
    if PREFIX + name.upper() in os.environ:
        return f"the environment ({PREFIX}{name.upper()})"
    return settings_file().name if name in _kept() else "default"
