"""``safeneuron chat``: what the Prune lab does, at the command line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from analysis.chat import Answered, Arm, Question, Removal, Said, newest_study, removed
from analysis.requests import parse_request
from app import terminal
from toolkit.errors import SafeNeuronError

TITLES: dict[Arm, str] = {
    "whole": "whole",
    "pruned": "without the neurons",
    "random": "without as many random ones",
}


def chat(
    model: Annotated[str, typer.Argument(help="Embedded name, folder, .gguf file or hub name.")],
    prompt: Annotated[
        str | None, typer.Option(help="Ask this alone; else a line at a time from the terminal.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Mask file whose neurons are removed.")] = None,
    study: Annotated[
        str | None,
        typer.Option(help="Study whose score ranks, by its key; the model's newest by default."),
    ] = None,
    score: Annotated[str, typer.Option(help="Score that ranks.")] = "sas",
    share: Annotated[float, typer.Option(help="Share of all neurons that is removed.")] = 0.01,
    random: Annotated[
        bool, typer.Option("--random/--no-random", help="Ask the random control too.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the random control.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 128,
    sample: Annotated[
        int | None, typer.Option(help="Seed to draw answers with; greedy when left out.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "bfloat16",
    force: Annotated[bool, typer.Option("--force", help="Use another model's neurons.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Chat with a model whole, pruned and with random neurons removed, side by side."""
    if mask is None and study is None:
        study = newest_study(model).key
    elif study is not None:
        from analysis.store import Store

        study = Store().one("identify", study).key
    chosen = parse_request(
        Removal, {"mask": mask, "study": study, "score": score, "share": share, "seed": seed}
    )
    neurons, _ = removed(chosen)
    if not as_json:
        terminal.note(f"removed: {len(neurons):,} of {neurons.total:,} neurons")

    import torch

    from toolkit.models.load import load_model

    arms: tuple[Arm, ...] = ("whole", "pruned", "random") if random else ("whole", "pruned")
    before: dict[Arm, tuple[Said, ...]] = dict.fromkeys(arms, ())
    loaded = load_model(model, dtype=getattr(torch, dtype))
    for line in [prompt] if prompt is not None else _lines():
        values = {"removal": chosen, "before": before, "prompt": line}
        values |= {"max_new_tokens": max_new_tokens, "sample": sample}
        try:
            question = parse_request(Question, values)
            answers = _asked(loaded, question, force, as_json)
        except SafeNeuronError as error:
            if prompt is not None:
                raise
            terminal.note("safeneuron: " + " ".join(str(error).split()))
            continue
        user = Said(role="user", text=line)
        for arm, told in answers.items():
            before[arm] = (*before[arm], user, Said(role="assistant", text=told.text))
        if as_json:
            told_all = {arm: asdict(told) for arm, told in answers.items()}
            terminal.print_json({"prompt": line, "removed": len(neurons), "answers": told_all})


def _lines() -> Iterator[str]:
    """What is typed, until the input ends."""
    while True:
        if sys.stdin.isatty():
            terminal.ERR.print("> ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _asked(loaded: Any, question: Question, force: bool, silent: bool) -> dict[Arm, Answered]:
    from analysis.chat import answer

    if silent:
        return answer(loaded, question, lambda arm, new: None, force)
    texts: dict[Arm, str] = dict.fromkeys(question.arms, "")
    with _shown(texts) as show:

        def heard(arm: Arm, new: str) -> None:
            texts[arm] += new
            show()

        answers = answer(loaded, question, heard, force)
        texts |= {arm: told.text for arm, told in answers.items()}
        show({arm: f"{told.verdict}: {told.why}" for arm, told in answers.items()})
    return answers


@contextmanager
def _shown(texts: dict[Arm, str]) -> Iterator[Any]:
    """The answers as they grow on a terminal; into a file or a pipe once they are whole."""

    def drawn(verdicts: dict[Arm, str]) -> Group:
        # As text: nothing a model says is markup.
        return Group(
            *(
                Panel(
                    Text(text),
                    title=Text(TITLES[arm]),
                    subtitle=Text(verdicts.get(arm, "")),
                    title_align="left",
                    subtitle_align="left",
                )
                for arm, text in texts.items()
            )
        )

    live = terminal.OUT.is_terminal
    with Live(console=terminal.OUT, auto_refresh=False) if live else _nothing() as display:

        def show(verdicts: dict[Arm, str] | None = None) -> None:
            if display is not None:
                display.update(drawn(verdicts or {}), refresh=True)
            elif verdicts is not None:
                for arm, text in texts.items():
                    terminal.say(f"[{TITLES[arm]}: {verdicts[arm]}]\n{text}\n")

        yield show


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
