"""Who may look: sign-in by OIDC where it is configured, else this machine alone.

The configuration is Streamlit's own: a ``secrets.toml`` whose ``[auth]`` part names the
provider. The setting ``sign_in`` says where it is, and ``allowed`` whom it lets in: addresses,
or ``@domain``; everybody the provider knows when empty.
"""

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.settings import read_settings
from toolkit.errors import SafeNeuronError

FIELDS = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")
SHORTEST = 32  # characters of the secret that signs cookies


@dataclass(frozen=True)
class SignIn:
    """How one signs in.

    Args:
        secrets: Streamlit's secrets file.
        allowed: addresses or ``@domain``, in lower case; everybody when empty.
    """

    secrets: Path
    allowed: tuple[str, ...] = ()

    def admits(self, claims: Mapping[str, Any]) -> bool:
        """Whether a signed-in visitor is one of those allowed, by a verified address."""
        if not claims.get("is_logged_in"):
            return False
        if not self.allowed:
            return True
        address = str(claims.get("email") or "").strip().lower()
        # Some providers let anybody claim an address; one that is not verified is no proof.
        if address.count("@") != 1 or claims.get("email_verified") is False:
            return False
        return address in self.allowed or "@" + address.partition("@")[2] in self.allowed


def configured() -> SignIn | None:
    """The sign-in of this installation; None when it is off."""
    settings = read_settings()
    if settings.sign_in is None:
        return None
    allowed = tuple(part.strip().lower() for part in settings.allowed if part.strip())
    return SignIn(settings.sign_in.expanduser().absolute(), allowed)


def check(sign_in: SignIn) -> None:
    """Refuse to serve behind a sign-in that would not work, before anything starts.

    Raises:
        SafeNeuronError: the file is missing, no TOML, or lacks a field; its cookie secret is
            short; others can read it; Authlib is not installed.
    """
    path = sign_in.secrets
    try:
        auth = tomllib.loads(path.read_text("utf-8")).get("auth")
    except (OSError, UnicodeDecodeError) as error:
        raise SafeNeuronError(f"cannot read {path}, which the setting sign_in names") from error
    except tomllib.TOMLDecodeError as error:
        raise SafeNeuronError(f"{path} is not TOML: {error}") from error
    if not isinstance(auth, dict):
        raise SafeNeuronError(f"{path} has no [auth] part; sign-in needs {', '.join(FIELDS)} in it")
    missing = [name for name in FIELDS if not str(auth.get(name) or "").strip()]
    if missing:
        raise SafeNeuronError(f"{path}: [auth] lacks {', '.join(missing)}")
    if len(str(auth["cookie_secret"])) < SHORTEST:
        raise SafeNeuronError(
            f"{path}: cookie_secret is shorter than {SHORTEST} characters; make one with "
            "'openssl rand -hex 32'"
        )
    if path.stat().st_mode & 0o007:
        raise SafeNeuronError(f"{path} holds secrets that every user can read; chmod 600 it")
    if find_spec("authlib") is None:
        raise SafeNeuronError("sign-in needs Authlib; pip install 'safeneuron[server]'")


def is_local(address: str) -> bool:
    """Whether only this machine reaches an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def guard(address: str, open_to_all: bool = False) -> dict[str, str]:
    """Refuse to open an unguarded dashboard to the network.

    Args:
        address: to listen at.
        open_to_all: whoever serves says that something in front asks who one is.

    Returns:
        The page server's options for the sign-in; none when it is off.

    Raises:
        SafeNeuronError: others could reach it and nobody would ask who they are; or the
            sign-in is misconfigured.
    """
    sign_in = configured()
    if sign_in is not None:
        check(sign_in)
        return {"secrets.files": str(sign_in.secrets)}
    if not is_local(address) and not open_to_all:
        raise SafeNeuronError(
            f"{address} is reachable from other machines and sign-in is off: set "
            "the setting sign_in to a secrets.toml, or pass --no-sign-in where something in front "
            "asks who one is"
        )
    return {}
