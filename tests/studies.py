"""A study of a tiny model in the store, without running it: scores are drawn at random."""

from pathlib import Path

import numpy as np

from analysis.scores.table import score_table
from analysis.select import Selection, select_parts
from analysis.store import Entry, Store
from toolkit.capture.moments import Moments
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, ModelInfo, PromptsInfo
from toolkit.models.sources import resolve


def drawn_study(model: Path, widths: list[int], seed: int = 0) -> Entry:
    """Identify ``model`` by scores drawn from ``seed``; a tenth of its neurons are chosen."""
    rng = np.random.default_rng(seed)
    sides = [
        [Moments(9, rng.normal(size=w), rng.uniform(1, 2, size=w)) for w in widths]
        for _ in range(2)
    ]
    table = score_table(*sides)
    info = ModelInfo(
        source=str(model),
        fingerprint=resolve(str(model)).fingerprint,
        architecture="LlamaForCausalLM",
        layers=len(widths),
        neurons_per_layer=widths,
    )
    selection = Selection("es+sas", top=0.1)
    parts = select_parts(table, widths, selection)
    prompts = PromptsInfo(name="some", sha256="b" * 64, count=9)
    mask = MaskFile.of(
        parts["es"] | parts["sas"],
        info,
        MethodInfo(name="es+sas", parameters={**selection.parameters(), "position": "last"}),
        MaskPrompts(harmful=prompts, harmless=prompts),
        parts,
    )

    def write(folder: Path) -> None:
        table.to_parquet(folder / "scores.parquet", index=False)
        mask.write(folder / "mask.json")

    facts = {"model": str(model), "fingerprint": info.fingerprint, "architecture": "llama"}
    facts |= {"widths": widths, "count": mask.count, "fraction": mask.fraction}
    facts |= {"method": "es+sas", "position": "last", "parameters": selection.parameters()}
    facts |= {"harmful": "some", "harmless": "some"}
    return Store().save("identify", {"of": str(model), "seed": seed}, "a study", facts, write)
