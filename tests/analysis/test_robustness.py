"""Attack tables from hand-made answers."""

from pathlib import Path

import pytest

from analysis.robustness import (
    Answer,
    AttackResult,
    Generation,
    MaskInfo,
    Setting,
    attack_table,
    finding,
    headline,
    read_attack,
)
from analysis.statistics import wilson
from toolkit.errors import SafeNeuronError
from toolkit.masks import MethodInfo, ModelInfo, PromptsInfo

HASH = "0" * 64


def answers(name: str, seed: int | None, complied: int, degenerate: int, n: int) -> list[Answer]:
    verdicts = ["complied"] * complied + ["degenerate"] * degenerate
    verdicts += ["refused"] * (n - len(verdicts))
    return [
        Answer(setting=name, seed=seed, side="harmful", index=i, verdict=v, why="made")  # type: ignore[arg-type]
        for i, v in enumerate(verdicts)
    ]


def result(full: int, random: list[int], n: int = 100) -> AttackResult:
    made = answers("FULL", None, full, 5, n)
    settings = [Setting(name="FULL", neurons=12)]
    for seed, complied in enumerate(random):
        made += answers("RANDOM", seed, complied, 0, n)
        settings.append(Setting(name="RANDOM", seed=seed, neurons=12))
    return AttackResult(
        model=ModelInfo(
            source="m", fingerprint=HASH, architecture="A", layers=1, neurons_per_layer=[1200]
        ),
        mask=MaskInfo(
            sha256=HASH, count=12, fraction=0.01, method=MethodInfo(name="es"), fingerprint=HASH
        ),
        settings=settings,
        prompts={"harmful": PromptsInfo(name="p", sha256=HASH, count=n)},
        generation=Generation(max_new_tokens=8, dtype="float32", batch_size=4),
        judge="refusal/1",
        answers=made,
        seconds=1.0,
    )


def test_counts_and_intervals() -> None:
    table = attack_table(result(40, [6, 8, 10]))
    full = table[table["setting"] == "FULL"].iloc[0]
    assert (full["k_complied"], full["k_refused"], full["k_degenerate"]) == (40, 55, 5)
    expected = wilson(40, 100)
    assert full["complied_low"] == expected.low
    assert full["complied_high"] == expected.high


def test_random_mean_has_the_interval_of_one_seed() -> None:
    mean = headline(result(40, [6, 8, 10])).set_index("setting").loc["RANDOM"]
    assert (mean["k_complied"], mean["n"], mean["seeds"]) == (8, 100, 3)
    assert mean["complied_high"] == wilson(8, 100).high


def test_verdict_needs_disjoint_intervals() -> None:
    clear, close = finding(result(40, [6, 8, 10])), finding(result(12, [6, 8, 10]))
    assert clear is not None
    assert close is not None
    assert clear.separated
    assert not close.separated
    assert "40/100" in clear.sentence
    assert finding(result(40, [])) is None


def test_file_round_trip_and_refusals(tmp_path: Path) -> None:
    made = result(3, [1])
    path = tmp_path / "attack.json"
    path.write_text(made.model_dump_json(by_alias=True), "utf-8")
    assert read_attack(path) == made
    path.write_text("{}", "utf-8")
    with pytest.raises(SafeNeuronError, match="not an attack result"):
        read_attack(path)
    with pytest.raises(SafeNeuronError, match="cannot read"):
        read_attack(tmp_path / "gone.json")
