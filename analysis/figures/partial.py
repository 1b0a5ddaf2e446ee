"""Errors grow through blocks left in full precision: runs with ``quantize.blocks=first:last``."""

from __future__ import annotations

from matplotlib.lines import Line2D

from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import captions, measured
from analysis.plotting.facets import facets, series
from analysis.plotting.lines import dashes, draw_line
from analysis.plotting.recipes import recipes
from analysis.plotting.style import GREY, styled, whole
from analysis.plotting.undrawn import Undrawn

ALL = "all"


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by method and bits; a colour a stretch of quantised blocks, marked where it is."""
    runs = recipes(frames.runs)
    places = ["model", "setting", "grid", "variant", "seed"]
    partly = runs.loc[runs["blocks"] != "", places].drop_duplicates()
    runs = runs.merge(partly, on=places, sort=False)  # whole runs only beside partial ones
    runs, alphas = measured.ways(runs)
    data = measured.depths(frames, runs)
    if data.empty:
        return None
    data = data[data["side"] == measured.SIDES[""]]
    data["stretch"] = data["blocks"].replace("", ALL)
    count = int(data["block"].max()) + 1
    data["last"] = [max(quantised(one, count), default=-1) for one in data["stretch"]]
    data = data.sort_values("last", kind="stable")
    data, styles, others = series(data, "stretch", ordered=False)
    panels = facets(data, ["model", "setting", "variant"], ["grid"])
    strokes = dashes(panels.data["way"])
    lost = Undrawn()
    for _, _, axes, part in panels:
        means = measured.over_seeds(part, ["stretch", "way", "block"])
        for (stretch, way), line in means.groupby(["stretch", "way"], sort=False):
            lost += draw_line(
                axes, line["block"], line["mean"], styles[stretch], way, strokes[way],
                ends(quantised(stretch, len(line))),
            )  # fmt: skip
        whole(axes.xaxis)
    panels.log_y()
    panels.label("decoder block", "relative error")
    panels.legend(
        [
            Line2D([], [], color=look.colour, marker=look.marker, label=f"blocks {name}")
            for name, look in styles.items()
        ]
        + [
            Line2D([], [], color=GREY, linestyle=style, label=way)
            for way, style in strokes.items()
        ]
    )
    return Drawing(
        panels.figure,
        captions.joined(
            "Relative error of the residual stream after every decoder block on calibration tokens"
            " where only some blocks are quantised (first:last, the last not included), mean over"
            " seeds. Markers: the first and the last quantised block; after it the error goes on"
            " through blocks in full precision.",
            alphas,
            captions.counted(frames, panels.data),
            captions.undrawn(lost, panels),
            others,
            panels.left_out,
        ),
    )


def ends(blocks: list[int]) -> list[int]:
    """The first and the last of them."""
    return sorted({blocks[0], blocks[-1]}) if blocks else []


def quantised(stretch: str, count: int) -> list[int]:
    """The blocks of ``first:last``, as in a Python slice, of ``count`` blocks."""
    if stretch == ALL:
        return list(range(count))
    first, _, last = stretch.partition(":")
    return list(range(count))[int(first) if first else None : int(last) if last else None]
