"""``safeneuron judges``: which judges there are, and how far each agrees with people."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app import terminal
from app.commands.options import Json
from toolkit.errors import SafeNeuronError


def judges(
    validate: Annotated[
        bool, typer.Option("--validate", help="Hold a judge against human labels.")
    ] = False,
    judge: Annotated[str, typer.Option(help="Which, as the list names it.")] = "refusal",
    labelled: Annotated[
        list[Path] | None,
        typer.Option(help="CSV of labelled answers, as XSTest's; PyRIT's when left out."),
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="List what the judge got wrong.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the judges and what each needs, or hold one against human labels."""
    if validate:
        _validate(judge, labelled or [], errors, as_json)
        return
    if labelled or errors or judge != "refusal":
        raise SafeNeuronError("--judge, --labelled and --errors go with --validate")
    from toolkit.judge.specs import JUDGES

    if as_json:
        terminal.print_json([vars(info) for info in JUDGES])
        return
    rows = [(info.name, info.says, info.needs, info.version) for info in JUDGES]
    terminal.print_table("judges of a model's answers", ("judge", "says", "needs", "version"), rows)


def _validate(spec: str, files: list[Path], with_errors: bool, as_json: bool) -> None:
    from analysis.agreement import agreement
    from toolkit.labelled import KNOWN_LABELS, read_labelled

    # Every file is read first: a mistake in the last should not cost the run before it.
    sets = [read_labelled(path) for path in files] or [known.load() for known in KNOWN_LABELS]
    name, tell = _teller(spec)
    found = []
    with terminal.progress_bar() as progress:
        total, done = sum(len(answers) for answers in sets), 0
        progress("judge", 0, total)

        def count(finished: int) -> None:
            nonlocal done
            done += finished
            progress("judge", done, total)

        for answers in sets:
            found.append(agreement(answers, tell(answers, count)))
    if as_json:
        terminal.print_json({"judge": name, "sets": [one.as_dict(with_errors) for one in found]})
        return
    for one in found:
        _print_agreement(name, one, with_errors)


def _teller(spec: str) -> tuple[str, Any]:
    """The judge's name, and what judges a labelled set with it."""
    from analysis.agreement import told_harm, told_refusal
    from toolkit.judge.refusal import VERSION, judge_refusal
    from toolkit.judge.specs import open_harm_judge
    from toolkit.judge.topic import VERSION as TOPIC
    from toolkit.judge.topic import judge_with_topic

    def alone(answers: Any, count: Any) -> Any:
        told = [told_refusal(judge_refusal(a.response)) for a in answers.answers]
        count(len(told))
        return told

    def with_topic(answers: Any, count: Any) -> Any:
        told = [told_refusal(judge_with_topic(a.prompt, a.response)) for a in answers.answers]
        count(len(told))
        return told

    if spec == "refusal":
        return VERSION, alone
    if spec == "refusal+topic":
        return f"{VERSION}+{TOPIC}", with_topic
    judge = open_harm_judge(spec)

    def harm(answers: Any, count: Any) -> Any:
        prompts = [a.prompt for a in answers.answers]
        responses = [a.response for a in answers.answers]
        return [told_harm(verdict) for verdict in judge.judge(prompts, responses, count)]

    return judge.name, harm


def _print_agreement(judge: str, found: Any, with_errors: bool) -> None:
    verdicts = sorted({verdict for row in found.confusion.values() for verdict in row})
    rows = [
        (label, *[str(found.confusion[label].get(verdict, 0)) for verdict in verdicts])
        for label in ("complied", "refused", "partial")
        if label in found.confusion
    ]
    title = f"{judge} on {found.name}: rows are human labels, columns verdicts"
    terminal.print_table(title, ("label", *verdicts), rows)
    terminal.say(f"agrees with full compliance and full refusal on {found.agreed}")
    if found.unparsed:
        terminal.say(f"unparsed, in none of these figures: {found.unparsed}")
    if with_errors:
        for error in found.errors:
            terminal.say(
                f"row {error.row}: {error.label} to people, {error.verdict} to the judge "
                f"({error.why})"
            )
            terminal.say(f"    {_short(error.prompt, 100)}")
            terminal.say(f"    {_short(error.response, 200)}")


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
