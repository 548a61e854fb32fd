"""Score tables by columns: what the file holds, shared and not to be changed."""

import numpy as np
import pandas as pd
import pytest

from app.dashboard.tables import Table, colours_of
from tests.app.test_pages import fill
from toolkit.errors import SafeNeuronError


def test_columns_are_the_file_s_and_shared() -> None:
    study, _ = fill()
    frame = pd.read_parquet(study.file("scores.parquet"))
    table = Table(study)
    assert table.scores == ["es", "sas", "t"]
    assert colours_of(table.columns)[:4] == ["es", "sas", "t", "mean_harmful"]
    for name in ("es", "delta"):
        assert table.column(name).tolist() == frame[name].tolist()
        assert table.column(name) is Table(study).column(name)
        with pytest.raises(ValueError, match="read-only"):
            table.column(name)[0] = 1.0
    assert np.shares_memory(table.frame(["es"])["es"].to_numpy(), table.column("es"))


def test_one_neuron_is_read_by_its_layer() -> None:
    study, _ = fill()
    frame = pd.read_parquet(study.file("scores.parquet"))
    row = frame[(frame["layer"] == 2) & (frame["neuron"] == 7)].iloc[0]
    assert Table(study).neuron(2, 7) == pytest.approx(row.to_dict())
    best = frame.loc[frame["sas"].idxmax()]
    assert Table(study).strongest("sas") == (best["layer"], best["neuron"])


def test_a_file_that_changed_is_read_anew() -> None:
    study, _ = fill()
    path = study.file("scores.parquet")
    before = Table(study).column("es")
    frame = pd.read_parquet(path)
    frame.assign(es=frame["es"] + 1).to_parquet(path)
    assert Table(study).column("es").tolist() == pytest.approx((before + 1).tolist())


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}"])
def test_a_damaged_file_is_told_with_the_remedy(content: bytes) -> None:
    study, _ = fill()
    study.file("scores.parquet").write_bytes(content)
    with pytest.raises(SafeNeuronError, match="cache verify"):
        Table(study)
