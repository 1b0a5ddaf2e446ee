"""QuantEase: the loss of the linears after every sweep."""

from __future__ import annotations

import pandas as pd

from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import captions
from analysis.plotting.facets import facets
from analysis.plotting.style import styled, whole
from analysis.plotting.traces import by_role, draw_medians, role_legend
from analysis.plotting.undrawn import Undrawn

METHOD = "quantease"


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by bits; a colour a role, median over blocks."""
    found = by_role(frames, METHOD)
    if found is None:
        return None
    data, alphas, styles, others = found
    panels = facets(data, ["model", "setting", "variant", "propagation"], ["grid"])
    lost = Undrawn()
    for _, _, axes, part in panels:
        lost += draw_medians(axes, part, "loss", styles, period(part))
        whole(axes.xaxis)
    panels.log_y()
    panels.label("sweep", "loss / signal")
    panels.legend(role_legend(styles))
    return Drawing(
        panels.figure,
        captions.joined(
            "QuantEase's loss tr((W* − V) H (W* − V)ᵀ) relative to the signal ‖W X‖² after every sweep,"
            " median over the blocks and seeds of a role. Sweeps that leave the weights unrounded"
            " (relax_every) dip below what rounded weights reach; markers stand on rounded ones.",
            alphas,
            captions.counted(frames, panels.data),
            captions.undrawn(lost, panels),
            others,
            panels.left_out,
        ),
    )


def period(rows: pd.DataFrame) -> int:
    """Every how many sweeps one is left unrounded: markers at its multiples stand on rounded ones."""
    return max([1, *(int(one.get("method.relax_every", "0")) for one in rows["settings"])])
