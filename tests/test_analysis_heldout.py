"""The table of layer losses on H and on held-out tokens."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
from records import leave

from analysis import load
from analysis.tables import heldout

SIGNALS = (10.0, 20.0, 40.0)


def rows(losses: tuple[float, ...], held: tuple[float, ...] | None) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for i, loss in enumerate(losses):
        row: dict[str, object] = {"name": f"l{i}", "role": "q", "block": i, "rows": 2}
        row |= {"rounding_error": loss, "local_error": loss, "total_error": 2 * loss}
        row |= {"signal": SIGNALS[i]}
        if held is not None:
            row |= {"rounding_error_heldout": held[i], "total_error_heldout": 3 * held[i]}
            row |= {"signal_heldout": 2 * SIGNALS[i]}
        found.append(row)
    return found


def test_it_shows_medians_over_linears(tmp_path: Path) -> None:
    losses, held = (1.0, 4.0, 2.0), (3.0, 5.0, 9.0)
    leave(tmp_path, "gptq", 3, 0.0, layers=rows(losses, held), name="a")
    leave(tmp_path, "rtn", 3, 0.0, layers=rows((1.0, 1.0, 1.0), None), name="b")
    table = heldout.build(load(tmp_path))
    assert table is not None
    (row,) = table.rows  # a run without held-out windows has nothing to show
    shown = dict(zip(table.header, row, strict=True))
    expected = {
        "loss on H": 100 * median(a / s for a, s in zip(losses, SIGNALS, strict=True)),
        "loss held out": 100 * median(b / (2 * s) for b, s in zip(held, SIGNALS, strict=True)),
        "held out / H": median(b / a for a, b in zip(losses, held, strict=True)),
        "total error held out": 100 * median(1.5 * b / s for b, s in zip(held, SIGNALS, strict=True)),
    }  # fmt: skip
    for title, value in expected.items():
        assert shown[title].values[""] == pytest.approx(value, rel=1e-6), title


def test_without_held_out_windows_there_is_no_table(tmp_path: Path) -> None:
    leave(tmp_path, "gptq", 3, 0.0, layers=rows((1.0, 1.0, 1.0), None))
    assert heldout.build(load(tmp_path)) is None
