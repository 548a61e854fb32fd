"""The image and the compose file, as far as a machine without a Docker engine can tell.

The build's own steps are run in a clean virtual environment; the files are read as Docker
reads them.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """The Dockerfile's instructions with their arguments, comments and continuations undone."""
    lines = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if line.strip()]
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        found.append((name, " ".join(rest.split())))
    return found


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    return loaded


def exec_form(argument: str) -> list[str]:
    """The words of an exec form: JSON, or Docker takes it for a shell's line."""
    words: list[str] = json.loads(argument.removeprefix("CMD "))
    return words


def test_the_image_is_not_root_s_and_has_a_health_check() -> None:
    names = [name for name, _ in instructions()]
    assert names[0] == "FROM"
    assert names.count("CMD") == 1
    assert names.index("USER") < names.index("CMD")
    assert dict(instructions())["USER"] == "safeneuron"
    assert dict(instructions())["VOLUME"] == "/data"
    check = dict(instructions())["HEALTHCHECK"]
    code = exec_form(check[check.index("CMD") :])[2]
    compile(code, "healthcheck", "exec")
    assert "/_stcore/health" in code


def test_what_is_copied_is_there_and_all_that_is_installed() -> None:
    copied = [part for name, rest in instructions() if name == "COPY" for part in rest.split()[:-1]]
    for part in copied:
        assert (ROOT / part).exists(), part
    assert {"toolkit", "analysis", "app", "pyproject.toml", "constraints.txt"} <= set(copied)
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert ".git" in ignored
    assert not set(copied) & set(ignored)


def test_commands_are_our_command_line_s() -> None:
    """Every command of the image and of compose is one that ``safeneuron`` takes."""
    from typer.testing import CliRunner

    from app.cli import app

    commands = [exec_form(rest) for name, rest in instructions() if name == "CMD"]
    services = compose()["services"]
    commands += [service["command"] for service in services.values()]
    commands.append(services["worker"]["healthcheck"]["test"][1:])
    ours = [words[1:] for words in commands if words[0] == "safeneuron"]
    assert len(ours) == 4
    for words in ours:
        helped = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200"})
        assert helped.exit_code == 0
        for option in (word for word in words[1:] if word.startswith("--")):
            assert option in helped.output, option


def test_services_share_the_results_and_are_watched() -> None:
    services = compose()["services"]
    assert set(services) == {"app", "worker", "redis"}
    assert all(service["restart"] == "unless-stopped" for service in services.values())
    for name in ("app", "worker"):
        assert services[name]["volumes"] == ["results:/data"]
        assert services[name]["image"] == "safeneuron"
    # Nobody signs in, so nobody from outside may come.
    assert services["app"]["ports"] == ["127.0.0.1:8501:8501"]
    assert services["redis"]["profiles"] == ["redis"]
    assert "ports" not in services["redis"]
    for name in ("worker", "redis"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"
    volumes = {part.partition(":")[0] for s in services.values() for part in s["volumes"]}
    assert volumes == set(compose()["volumes"])


def test_an_empty_queue_setting_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose hands on an empty variable where nobody set one."""
    from app.jobs.queue import queue_url

    monkeypatch.setenv("SAFENEURON_QUEUE", "")
    assert queue_url().startswith("sqlite:///")


@pytest.mark.slow
def test_the_build_s_steps_in_a_clean_environment(tmp_path: Path) -> None:
    """Each COPY and each pip step in the Dockerfile's order; then what the image would start."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True, timeout=120)
    python, place = tmp_path / "env" / "bin" / "python", tmp_path / "app"
    place.mkdir()
    ran = 0
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                path = ROOT / source
                if path.is_dir():
                    shutil.copytree(
                        path, place / target, ignore=shutil.ignore_patterns("__pycache__")
                    )
                else:
                    shutil.copy(path, place / target)
        elif name == "RUN" and rest.startswith("python -m pip"):
            command = [str(python), *shlex.split(rest)[1:], "--quiet"]
            subprocess.run(command, cwd=place, check=True, timeout=550)
            ran += 1
    assert ran == 2
    safeneuron = python.with_name("safeneuron")
    environment = {"SAFENEURON_HOME": str(tmp_path / "home"), "PATH": str(python.parent)}
    told = subprocess.run(
        [str(safeneuron), "models", "--json"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "smollm2-135m-aligned" in told.stdout
    refused = subprocess.run(
        [str(safeneuron), *exec_form(dict(instructions())["CMD"])[1:]],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused.returncode == 2
    assert "sign-in is off" in refused.stderr
    for module in ("authlib", "redis", "psycopg"):
        subprocess.run([str(python), "-c", f"import {module}"], check=True, timeout=60)
