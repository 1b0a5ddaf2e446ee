"""Layer loss on the tokens that fed H, and on held-out ones: how far a method fits H's noise.

The loss of a linear is tr((W* − V) H (W* − V)ᵀ) relative to its signal ‖W X‖²/T; of all linears of
a run the table shows the median. Held-out windows (``calibration.holdout``) fed no statistic.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.frames import Frames
from analysis.layout import SPREAD
from analysis.rowwise import Column, rowwise
from analysis.tables.base import Table

CAPTION = (
    "Layer loss relative to the signal, median over linears, in percent: on the calibration "
    "tokens, on held-out windows, and the total error there; lower is better."
)
NOTES = [
    "held out / H: the median over linears of the loss on held-out windows over that on H; "
    "1 would be no overfitting.",
    SPREAD,
]
SHARES = {
    "loss on H": ("rounding_error", "signal"),
    "loss held out": ("rounding_error_heldout", "signal_heldout"),
    "held out / H": ("rounding_error_heldout", "rounding_error"),
    "total error held out": ("total_error_heldout", "signal_heldout"),
}


def build(frames: Frames) -> Table | None:
    """A row a recipe with held-out windows; None where no run had any."""
    layers = frames.layers
    needed = {name for pair in SHARES.values() for name in pair}
    if not needed <= set(layers.columns):
        return None
    runs = frames.runs.merge(shares(layers), left_on="run", right_index=True)
    columns = [Column(title, title, 1.0 if title == "held out / H" else 100.0) for title in SHARES]
    return rowwise(runs, columns, CAPTION, NOTES)


def shares(layers: pd.DataFrame) -> pd.DataFrame:
    """Of every run with held-out windows the medians over its linears, a column a share.

    An error that is NaN is infinite; a linear without error and signal has no share.
    """
    held = layers[layers["signal_heldout"].notna()]
    found = pd.DataFrame({"run": held["run"].astype(str)})
    for title, (error, scale) in SHARES.items():
        ratio = held[error] / held[scale]
        found[title] = ratio.mask(held[error].isna(), np.inf)
    return found.groupby("run").median()
