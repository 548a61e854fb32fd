"""The command that starts a job's process, by itself or through a launcher.

A launcher is a command prefix: ``accelerate launch``, ``srun``, ``ray job submit --``,
``sky exec NAME --``. Whatever it is, the process under it works in the same folder, which
the machine it runs on must share.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from app.jobs.devices import Slot, environment, is_launched
from app.jobs.folder import Job
from app.jobs.process import MARK
from app.settings import Settings, read_settings
from toolkit.errors import SafeNeuronError
from toolkit.home import home

# They start Python themselves and are told a module.
BRINGS_PYTHON = {"accelerate", "torchrun"}


def command_of(job: Job, settings: Settings) -> list[str]:
    """The words that start a job's process.

    Raises:
        SafeNeuronError: the launcher is not on this machine.
    """
    module = ["-m", "app.jobs.run", str(job.folder), str(home().absolute())]
    if not is_launched(settings, job.verb):
        return [sys.executable, *module]
    prefix = settings.prefix()
    # Those of this environment first: it need not be activated.
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    program = shutil.which(prefix[0], path=places) if prefix else None
    if program is None:
        raise SafeNeuronError(
            f"the launcher {settings.launcher!r} is not on this machine; "
            "'safeneuron settings set launcher' changes it"
        )
    brings = Path(program).name in BRINGS_PYTHON
    return [program, *prefix[1:], *([] if brings else [settings.interpreter()]), *module]


def spawn(job: Job, slot: Slot) -> "subprocess.Popen[bytes]":
    """Start a job's process in a session of its own; it inherits the slot's locks.

    What the launcher says goes to the job's log, where the process writes too.

    Raises:
        SafeNeuronError: it cannot be started.
    """
    settings = read_settings()
    command = command_of(job, settings)
    variables = environment(slot, is_launched(settings, job.verb))
    variables |= {MARK: str(job.folder.resolve()), "SAFENEURON_HOME": str(home().absolute())}
    try:
        with job.file("log.txt").open("ab") as log:
            return subprocess.Popen(
                command,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | variables,
                pass_fds=slot.files,
            )
    except OSError as error:
        raise SafeNeuronError(f"{command[0]} does not start: {error.strerror}") from error
