"""Who may look: sign-in by configuration, this machine alone without it, each refusal in a line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import app.dashboard
from app.dashboard.components import gate
from app.serve import serve
from app.sign_in import SignIn, check, configured, guard, is_local
from tests.app.test_pages import fill
from toolkit.errors import SafeNeuronError

FOLDER = Path(app.dashboard.__file__).parent
EVERY_PAGE = sorted(FOLDER.glob("views/[a-z]*.py"))
SECRETS = """
[auth]
redirect_uri = "http://localhost:8501/oauth2callback"
cookie_secret = "0123456789abcdef0123456789abcdef"
client_id = "safeneuron"
client_secret = "not-a-secret"
server_metadata_url = "http://localhost:9000/.well-known/openid-configuration"
"""
Sign = Callable[..., Path]


@pytest.fixture
def sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sign:
    """Switch sign-in on, with a secrets file as given."""

    def switch(text: str = SECRETS, allowed: str = "", mode: int = 0o600) -> Path:
        path = tmp_path / "secrets.toml"
        path.write_text(text, "utf-8")
        path.chmod(mode)
        monkeypatch.setenv("SAFENEURON_SIGN_IN", str(path))
        monkeypatch.setenv("SAFENEURON_ALLOWED", allowed)
        return path

    return switch


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAFENEURON_SIGN_IN", "SAFENEURON_ALLOWED"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *((address, True) for address in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *((address, False) for address in ("0.0.0.0", "::", "192.168.1.2", "example.org")),
    ],
)
def test_what_is_this_machine_alone(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_nobody_serves_the_network_by_accident() -> None:
    assert guard("127.0.0.1") == {}
    for address in ("0.0.0.0", "::", "10.0.0.8"):
        with pytest.raises(SafeNeuronError, match="sign-in is off") as refused:
            guard(address)
        assert "\n" not in str(refused.value)
        assert guard(address, open_to_all=True) == {}
    with pytest.raises(SafeNeuronError, match="sign-in is off"):
        serve(8501, "0.0.0.0")


def test_sign_in_opens_the_network(sign: Sign) -> None:
    path = sign()
    assert guard("0.0.0.0") == {"secrets.files": str(path)}
    assert configured() == SignIn(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[auth", "not TOML"),
        ("[other]\na = 1", "no \\[auth\\] part"),
        ("auth = 3", "no \\[auth\\] part"),
        (SECRETS.replace("client_secret", "secret"), "lacks client_secret"),
        (SECRETS.replace('"safeneuron"', '" "'), "lacks client_id"),
        (SECRETS.replace("0123456789abcdef0123456789abcdef", "short"), "shorter than 32"),
    ],
)
def test_a_sign_in_that_would_not_work_is_refused(sign: Sign, text: str, said: str) -> None:
    sign(text)
    with pytest.raises(SafeNeuronError, match=said) as refused:
        guard("127.0.0.1")
    assert "\n" not in str(refused.value)


def test_secrets_that_others_read_or_nobody_wrote_are_refused(sign: Sign) -> None:
    path = sign(mode=0o644)
    with pytest.raises(SafeNeuronError, match="chmod 600"):
        guard("127.0.0.1")
    path.unlink()
    with pytest.raises(SafeNeuronError, match="cannot read"):
        check(SignIn(path))


@pytest.mark.parametrize(
    ("claims", "admitted"),
    [
        ({}, False),
        ({"is_logged_in": False, "email": "ann@lab.org"}, False),
        ({"is_logged_in": True}, False),
        ({"is_logged_in": True, "email": "ann@lab.org"}, True),
        ({"is_logged_in": True, "email": " ANN@LAB.org "}, True),
        ({"is_logged_in": True, "email": "ann@lab.org", "email_verified": False}, False),
        ({"is_logged_in": True, "email": "bob@else.org"}, True),
        ({"is_logged_in": True, "email": "eve@else.org"}, False),
        ({"is_logged_in": True, "email": "eve@lab.org.evil.com"}, False),
        ({"is_logged_in": True, "email": "eve@evil.com@lab.org"}, False),
        ({"is_logged_in": True, "email": None}, False),
    ],
)
def test_whom_the_list_lets_in(sign: Sign, claims: dict[str, Any], admitted: bool) -> None:
    sign(allowed="@lab.org, Bob@else.org")
    found = configured()
    assert found is not None
    assert found.admits(claims) is admitted


def test_everybody_the_provider_knows_when_no_list_is_given(tmp_path: Path) -> None:
    door = SignIn(tmp_path)
    assert door.admits({"is_logged_in": True})
    assert not door.admits({"email": "ann@lab.org"})


@pytest.mark.parametrize("path", [FOLDER / "main.py", *EVERY_PAGE], ids=lambda path: path.stem)
def test_a_stranger_sees_the_sign_in_alone(
    path: Path, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every page's own file too: Streamlit may run it before the entrance."""
    fill()
    sign(allowed="@lab.org")
    visitor: dict[str, Any] = {}
    monkeypatch.setattr(gate, "claims", lambda: visitor)
    test = AppTest.from_file(str(path), default_timeout=120).run()
    assert not test.exception
    assert [title.value for title in test.title] == ["SafeNeuron"]
    assert [button.label for button in test.button] == ["Sign in"]
    for shown in (test.selectbox, test.dataframe, test.metric, test.text_input, test.number_input):
        assert not shown
    visitor |= {"is_logged_in": True, "email": "<b>eve</b>@else.org"}
    test.run()
    assert [button.label for button in test.button] == ["Sign out"]
    assert "may not see" in test.error[0].value
    assert "<b>" not in test.error[0].value
    assert not test.selectbox


def test_a_guest_sees_the_pages_and_the_way_out(
    sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill()
    sign(allowed="@lab.org")
    monkeypatch.setattr(gate, "claims", lambda: {"is_logged_in": True, "email": "ann@lab.org"})
    test = AppTest.from_file(str(FOLDER / "main.py"), default_timeout=120).run()
    assert not test.exception
    assert test.title[0].value == "SafeNeuron"
    assert [button.label for button in test.sidebar.button] == ["Sign out"]
