"""``safeneuron serve`` and ``safeneuron worker``."""

from typing import Annotated

import typer

from toolkit.errors import SafeNeuronError


def serve(
    port: Annotated[int, typer.Option()] = 8501,
    address: Annotated[str, typer.Option(help="0.0.0.0 opens it to the network.")] = "127.0.0.1",
    with_worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Run queued jobs here too.")
    ] = True,
    open_to_all: Annotated[
        bool,
        typer.Option("--no-sign-in", help="Open it although nobody has to sign in here."),
    ] = False,
) -> None:
    """Start the dashboard and its worker; Ctrl-C stops both."""
    from app.serve import serve as run

    raise typer.Exit(run(port, address, with_worker, open_to_all))


def worker(
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether one runs here; for health checks.")
    ] = False,
) -> None:
    """Run queued jobs, without the dashboard."""
    from app.jobs.process import here
    from app.jobs.worker import work, workers

    if not check:
        work()
        return
    if not any(sign.host == here() for sign in workers()):
        raise SafeNeuronError("no worker runs here; 'safeneuron worker' starts one")
