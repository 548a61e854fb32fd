"""The Safety map: thresholds, links, clicks, windows and a second map."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.safety_map import Window, grid
from app.dashboard.components.map_window import boxed
from tests.app.test_pages import WIDTHS, fill, opened, texts
from toolkit.masks import parse_mask
from toolkit.neurons import NeuronSet


def test_moving_a_threshold_selects_anew(own_home: Path) -> None:
    study, _ = fill()
    test = opened("safety_map")
    count = test.metric[0].value
    assert count == str(study.summary["count"])
    key = study.key
    test.slider(key=f"tau_sas-{key}").set_value(0.5).run()
    test.slider(key=f"tau_es-{key}").set_value(0.3).run()
    assert int(test.metric[0].value) > int(count)
    test.radio(key=f"by-{key}").set_value("top").run()
    test.slider(key=f"top-{key}").set_value(10.0).run()
    assert not test.exception
    assert 8 <= int(test.metric[0].value) <= 10  # of 100 neurons


def test_a_link_restores_the_map() -> None:
    study, _ = fill()
    query = {"method": "sas", "by": "top", "top": "0.1", "layer": "2", "neuron": "7"}
    test = opened("safety_map", study=study.key, **query)
    assert test.metric[0].value == "10"
    assert (test.number_input(key="layer").value, test.number_input(key="neuron").value) == (2, 7)
    assert "Layer 2, neuron 7" in texts(test)


def test_number_fields_show_a_neuron_as_the_table_has_it() -> None:
    study, _ = fill()
    test = opened("safety_map")
    test.number_input(key="layer").set_value(1).run()
    test.number_input(key="neuron").set_value(33).run()
    table = pd.read_parquet(study.file("scores.parquet"))
    row = table[(table["layer"] == 1) & (table["neuron"] == 33)].iloc[0]
    shown = dict(test.table[0].value["value"])
    assert float(shown["ES (Cohen's d)"]) == pytest.approx(row["es"], rel=1e-3)
    [mean] = [value for what, value in shown.items() if what.startswith("Mean, harmless")]
    assert float(mean) == pytest.approx(row["mean_harmless"], rel=1e-3)
    # A narrower layer pulls the index within its width.
    test.number_input(key="layer").set_value(2).run()
    assert test.number_input(key="neuron").value == 19


def test_a_selection_is_kept_for_an_attack(own_home: Path) -> None:
    study, _ = fill()
    test = opened("safety_map")
    test.slider(key=f"tau_es-{study.key}").set_value(0.5).run()
    count = int(test.metric[0].value)
    next(b for b in test.button if b.label == "Attack this selection").click().run()
    assert not test.exception
    [kept] = (own_home / "masks").glob("*.json")
    assert parse_mask(kept.read_text("utf-8")).count == count
    assert test.title[0].value == "Attack"


@pytest.mark.parametrize(
    ("window", "x", "y", "found"),
    [
        (Window((0, 2), (0, 39)), [3.6, 9.2], [2.4, 0.7], (1, 2, 3, 10)),
        (Window((0, 2), (0, 39)), [-4.0, 90.0], [-1.0, 9.0], (0, 9, 0, 90)),
        (Window((1, 1), (0, 39)), [2.0, 5.0], [15.0, 17.0], (1, 1, 16, 31)),
        (Window((1, 1), (8, 39)), [0.0, 9.0], [5.0, 10.0], (1, 1, 8, 23)),
    ],
    ids=["part", "beyond the edges", "a folded row", "a folded part"],
)
def test_a_box_opens_what_is_in_it(
    window: Window, x: list[float], y: list[float], found: tuple[int, ...]
) -> None:
    cells = grid(np.zeros(sum(WIDTHS)), NeuronSet(WIDTHS, {}), window, 16)
    assert boxed(x, y, cells) == found


def test_a_link_opens_a_layer_and_a_box() -> None:
    study, _ = fill()
    test = opened("safety_map", study=study.key, open="1", color="es")
    assert test.selectbox(key=f"open-{study.key}").value == "1"
    assert test.selectbox(key="color").value == "es"
    test = opened("safety_map", study=study.key, box="1-2.5-19")
    assert "layers 1 to 2, neurons 5 to 19" in texts(test)
    next(b for b in test.button if b.label == "Back to all").click().run()
    assert "Opened:" not in texts(test)


def test_any_score_of_the_table_chooses_and_colours() -> None:
    study, _ = fill()
    test = opened("safety_map", study=study.key, method="t", by="top", top="0.05", color="t")
    assert test.metric[0].value == "5"
    frame = pd.read_parquet(study.file("scores.parquet"))
    rising = frame[frame["t"] > 0]
    best = rising.nlargest(5, "t")
    assert float(test.metric[1].value.rstrip("%")) == pytest.approx(5.0)
    assert len(best) == 5


def test_a_colour_that_the_address_makes_up_is_the_usual_one() -> None:
    study, _ = fill()
    usual = opened("safety_map", study=study.key).selectbox(key="color").value
    assert usual == "sas"
    test = opened("safety_map", study=study.key, color="plaid")
    assert test.selectbox(key="color").value == usual


def test_the_study_s_own_mask_is_one_way_to_choose() -> None:
    study, _ = fill()
    test = opened("safety_map", study=study.key, by="study")
    assert test.metric[0].value == str(study.summary["count"])


def test_a_second_map_beside_the_first_and_their_difference() -> None:
    study, _ = fill()
    other, _ = fill(evil=True)
    query = {"study": study.key, "with": f"study-{other.key}"}
    for view in ("side by side", "difference"):
        test = opened("safety_map", **query, **{"as": view})
        # The two studies hold the same numbers, so that nothing differs.
        count = int(study.summary["count"])
        assert f"Selected in both: {count}; only in the second: 0" in texts(test).replace("\\", "")
    test = opened("safety_map", study=study.key, **{"with": "score-t", "as": "difference"})
    assert "only in the first" in texts(test)


def test_a_neuron_goes_into_the_working_mask_and_out(own_home: Path) -> None:
    study, _ = fill()
    test = opened("safety_map", study=study.key, layer="1", neuron="3")
    test.button(key="working").click().run()
    [kept] = (own_home / "masks").glob("working-*.json")
    assert list(parse_mask(kept.read_text("utf-8")).neuron_set()) == [(1, 3)]
    assert test.button(key="working").label == "Take from the working mask"
    test.button(key="working").click().run()
    assert parse_mask(kept.read_text("utf-8")).count == 0


def test_a_table_of_another_shape_is_told() -> None:
    study, _ = fill()
    pd.read_parquet(study.file("scores.parquet")).head(50).to_parquet(study.file("scores.parquet"))
    test = opened("safety_map", study=study.key)
    assert "cache verify" in test.error[0].value
