"""Errors accumulate over depth: the residual stream's relative error after every block."""

from __future__ import annotations

from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import captions, measured
from analysis.plotting.facets import LINES, facets, series
from analysis.plotting.lines import dashes, draw_line, legend
from analysis.plotting.recipes import recipes
from analysis.plotting.style import styled, whole
from analysis.plotting.undrawn import Undrawn

MARKS = 6  # markers on a line
TOTAL = "Relative error of the residual stream, ‖Y − Ŷ‖²/‖Y‖², after every decoder block"


def draw(frames: Frames) -> Drawing | None:
    """Panels by bits, calibration above held-out; a colour a method, dashed without QEP."""
    return draw_error(frames, "relative_error", TOTAL)


@styled
def draw_error(frames: Frames, error: str, what: str) -> Drawing | None:
    """One of the errors of :data:`analysis.frames.BLOCK_ERRORS` over depth; ``what`` it is in words."""
    runs = recipes(frames.runs)
    runs = runs.sort_values(["bits", "group_size"], kind="stable")
    runs, alphas = measured.ways(runs[runs["blocks"] == ""])
    data = measured.depths(frames, runs, error)
    if data.empty:
        return None
    data, styles, others = series(data, most=LINES)
    panels = facets(data, ["model", "setting", "side"], ["grid"])
    shown = panels.data
    strokes = dashes(shown["way"])
    lost = Undrawn()
    for _, _, axes, part in panels:
        means = measured.over_seeds(part, ["variant", "way", "block"])
        for (variant, way), line in means.groupby(["variant", "way"], sort=False):
            every = max(1, len(line) // MARKS)
            first = (list(styles).index(variant) * every // len(styles)) % every
            lost += draw_line(
                axes,
                line["block"],
                line["mean"],
                styles[variant],
                way,
                strokes[way],
                (first, every),
            )
        whole(axes.xaxis)
    panels.log_y()
    panels.label("decoder block", "relative error")
    panels.legend(legend(styles, strokes))
    return Drawing(
        panels.figure,
        captions.joined(
            f"{what}, mean over seeds.",
            alphas,
            captions.counted(frames, shown),
            captions.undrawn(lost, panels),
            others,
            panels.left_out,
        ),
    )
