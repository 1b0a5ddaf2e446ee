"""QQA: loss, penalty and diversity while the relaxed rounding is annealed."""

from __future__ import annotations

from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import captions, measured
from analysis.plotting.facets import facets
from analysis.plotting.style import styled, whole
from analysis.plotting.traces import by_role, draw_medians, role_legend
from analysis.plotting.undrawn import Undrawn

METHOD = "qqa"
KINDS = {
    "loss": "loss / signal",
    "penalty": "penalty a weight",
    "diversity": "diversity a weight",
}


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by bits, and loss, penalty, diversity; a colour a role, median over blocks."""
    found = by_role(frames, METHOD)
    if found is None:
        return None
    data, alphas, styles, others = found
    data = measured.stacked({title: data for title in KINDS.values()}, "kind")
    panels = facets(
        data, ["model", "setting", "variant", "propagation", "grid"], ["kind"], share_y=False
    )
    lost = Undrawn()
    keys = {title: key for key, title in KINDS.items()}
    for _, kind, axes, part in panels:
        lost += draw_medians(axes, part, keys[kind], styles)
        whole(axes.xaxis)
        if keys[kind] != "loss":
            axes.set_ylim(bottom=0)
    panels.log_y(KINDS["loss"])
    panels.label("step", "")
    panels.legend(role_legend(styles))
    return Drawing(
        panels.figure,
        captions.joined(
            "QQA's annealing, median over the blocks and seeds of a role, mean over its parallel"
            " solutions: the loss of the relaxed weights relative to the signal ‖W X‖²; the penalty"
            " 1 − (1 − 2p)^c (1: all undecided, 0: all rounded); the standard deviation of p over"
            " solutions.",
            alphas,
            captions.counted(frames, panels.data),
            captions.undrawn(lost, panels),
            others,
            panels.left_out,
        ),
    )
