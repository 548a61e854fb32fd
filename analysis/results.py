"""The results page: attack tables in Markdown with all it takes to run them again.

``python -m analysis.results ATTACK.json ... -o docs/results.md`` writes it from stored
attacks; nothing on it is typed by hand.
"""

import argparse
import shlex
import sys
from pathlib import Path

from analysis.comparison import compare_attacks, costs_markdown, markdown
from analysis.robustness import AttackResult, finding, read_attack
from toolkit.files import write_atomically

START, END = "<!-- attacks: written by analysis.results -->", "<!-- end of attacks -->"


def provenance(result: AttackResult) -> list[str]:
    """What the numbers of one attack were made with, a line each."""
    prompts = "; ".join(f"{p.count} {side} ({p.name})" for side, p in result.prompts.items())
    found = "; ".join(f"{p.count} {side} ({p.name})" for side, p in result.found_on.items())
    seeds = sorted({s.seed for s in result.settings if s.seed is not None})
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    method = ", ".join(f"{k} {v}" for k, v in result.mask.method.parameters.items())
    lines = [
        f"Model `{result.model.source}` (fingerprint `{result.model.fingerprint[:12]}`), "
        f"{result.model.neurons} MLP neurons.",
        f"Mask: {result.mask.count} neurons ({result.mask.fraction:.2%}) by "
        f"{result.mask.method.name} ({method}), `{result.mask.sha256[:12]}`.",
        f"Attacked: {prompts}.",
        f"Greedy answers of at most {result.generation.max_new_tokens} tokens in "
        f"{result.generation.dtype}, {result.generation.batch_size} prompts at a time; judge "
        f"`{result.judge}`; seeds {', '.join(map(str, seeds)) or 'none'}.",
        f"{result.created:%Y-%m-%d}, {result.seconds:.0f} s on {result.device or 'unknown'}; "
        f"{result.tool.name} {result.tool.version}{', ' if versions else ''}{versions}.",
    ]
    if found:
        lines.insert(3, f"Settings that look for neurons did so on: {found}.")
    if result.command:
        lines.append(f"Command: `{shlex.join(result.command)}`")
    return lines


def attacks_section(results: dict[str, AttackResult]) -> str:
    """Every attack's table, provenance and finding, as Markdown."""
    parts = []
    for name, result in results.items():
        parts.append(f"### {name}\n")
        if found := finding(result):
            parts.append(found.sentence + "\n")
        parts.append("\n".join(f"- {line}" for line in provenance(result)) + "\n")
        parts.append(markdown(compare_attacks({name: result}), list(result.prompts)))
        if result.costs:
            parts.append(costs_markdown(name, result))
    if len(results) > 1:
        parts.append("### Side by side\n")
        table = compare_attacks(results)
        parts.append(markdown(table, list(dict.fromkeys(table["side"]))))
    return "\n".join(parts)


def write_section(
    path: Path, section: str, marks: tuple[str, str] = (START, END), leads: bool = False
) -> None:
    """Put a section between its marks in a page, which is made when missing.

    Args:
        path: the page; what stands outside of the marks stays.
        section: Markdown.
        marks: comments before and after it.
        leads: where the page lacks the marks, put them below its title, not at its end.
    """
    start, end = marks
    text = path.read_text("utf-8") if path.is_file() else "# Results\n"
    if start not in text or end not in text:
        title, _, rest = text.partition("\n")
        if leads and title.startswith("# "):
            text = f"{title}\n\n{start}\n{end}\n{rest}"
        else:
            text = f"{text.rstrip()}\n\n{start}\n{end}\n"
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{head}{start}\n\n{section}\n{end}{tail}")


def main() -> None:
    """Write the section from attack files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="+", type=Path, help="attack files")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    results = {path.stem: read_attack(path) for path in arguments.attacks}
    write_section(arguments.output, attacks_section(results))
    sys.stdout.write(f"{arguments.output}\n")


if __name__ == "__main__":
    main()
