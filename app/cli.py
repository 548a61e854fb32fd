"""The command line: one verb a step, each thin over the same functions as the pages."""

import sys

import typer

from app import terminal
from app.commands.align import align
from app.commands.attack import attack, compare
from app.commands.cache import cache
from app.commands.capability import capability
from app.commands.chat import chat
from app.commands.demo import demo
from app.commands.doctor import doctor
from app.commands.export import export, figure
from app.commands.identify import identify, scores
from app.commands.jobs import jobs
from app.commands.judges import judges
from app.commands.known import models, prompts, schema
from app.commands.masks import masks
from app.commands.neuron import neuron
from app.commands.overlap import overlap
from app.commands.patch import patch
from app.commands.redteam import redteam
from app.commands.rounds import rounds
from app.commands.serve import serve, worker
from app.commands.settings import settings
from toolkit.errors import SafeNeuronError

app = typer.Typer(
    name="safeneuron",
    help="Find the MLP neurons a model's refusals hang on, attack them, and train it to stand "
    "without them.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command()(identify)
app.command()(scores)
app.command()(attack)
app.command()(compare)
app.command()(align)
app.command()(doctor)
app.command()(models)
app.command()(prompts)
app.command()(schema)
app.command()(demo)
app.command()(serve)
app.command()(worker)
app.add_typer(jobs, name="jobs")
app.add_typer(masks, name="masks")
app.add_typer(settings, name="settings")
app.add_typer(cache, name="cache", invoke_without_command=True)
app.command()(neuron)
app.command()(patch)
app.command()(judges)
app.command()(capability)
app.command()(overlap)
app.command()(export)
app.command()(figure)
app.command()(redteam)
app.command()(chat)
app.command()(rounds)


STOPPED = 130


def main() -> None:
    """Run a command; bad input ends in one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except SafeNeuronError as error:
        terminal.note("safeneuron: " + " ".join(str(error).split()))
        sys.exit(2)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        terminal.note("safeneuron: " + " ".join(message.replace("Value error, ", "").split()))
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        why = f"{error.filename}: {error.strerror}; choose a place that can be read and written"
        terminal.note(f"safeneuron: {why}")
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        code = STOPPED
    # Typer makes a code of Ctrl-C.
    if code == STOPPED:
        terminal.note("safeneuron: stopped; the same command goes on, or begins again")
    sys.exit(code if isinstance(code, int) else 0)
