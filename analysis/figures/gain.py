"""What QEP changes: a heat map of methods by bits, for every alpha."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import captions, measured
from analysis.plotting.facets import Facets, facets, series
from analysis.plotting.style import DIVERGING, folded, styled
from analysis.plotting.undrawn import NOTHING

PLACE = ["model", "setting", "corpus", "grid", "variant"]
CELL, LOWEST, MOST = 0.24, 1.0, 7  # a cell's and a panel's least height, inches; grids at most
WIDTH, LINE = 26, 0.13  # characters in a line of a method's name, and its height, inches
FIRST = {"0.5": 0, "1": 1, "auto": 2}  # the alphas to show where there is no room for all
# The colour scale spans this much, in log perplexity, and no more: a collapse would pale all else.
LEAST, FARTHEST = 0.05, np.log(4)


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by corpus and alpha; a number a cell, the change in percent."""
    shown, options = measured.usual(measured.perplexities(frames))
    data = gains(shown)
    if data.empty:
        return None
    data, styles, others = series(data)
    grids = list(data.sort_values(["bits", "group_size"], kind="stable")["grid"].unique())
    data, grids, narrowed = data[data["grid"].isin(grids[:MOST])], grids[:MOST], grids[MOST:]
    panels = facets(
        data,
        ["model", "setting", "corpus"],
        ["way"],
        height=max(LOWEST, row_height(styles) * len(styles) + 0.35),
        broad=max(map(len, styles)) > WIDTH,
    )
    drawn = panels.data
    finite = drawn["value"][np.isfinite(drawn["value"])].abs()
    farthest = max([LEAST, *finite])
    bound = min(farthest, FARTHEST)
    norm = Normalize(-bound, bound)
    for _, _, axes, part in panels:
        draw_map(axes, part, list(styles), grids, norm)
    colours(panels, norm, extend="both" if farthest > bound else "neither")
    panels.label("", "")
    infinite = int((~np.isfinite(drawn["value"])).sum())
    nothing = f"{NOTHING.capitalize()}." if infinite == len(drawn) else ""
    return Drawing(
        panels.figure,
        captions.joined(
            "Change of perplexity by QEP in percent, against the same method and bits without it;"
            " negative (blue) is better. Runs are paired by seed, ratios averaged geometrically."
            " Hatched: not measured.",
            captions.counted(frames, pd.concat([drawn, twins(drawn)]), corpora=True),
            nothing,
            captions.diverged(infinite, "∞ in the cell: before and after the arrow"),
            f"Not shown: {', '.join(narrowed)}." if narrowed else "",
            f"Options of QEP that are not shown: {'; '.join(options)}." if options else "",
            others,
            panels.left_out,
        ),
    )


def row_height(variants: Iterable[str]) -> float:
    """Of a row of cells, inches: the name that takes most lines has to stand beside it."""
    return max([CELL, *(LINE * (1 + folded(one, WIDTH).count("\n")) for one in variants)])


def gains(data: pd.DataFrame) -> pd.DataFrame:
    """Every run with QEP beside that of the same seed without: value = log(with / without).

    −∞ where only the run without QEP diverged, +∞ where only the one with it did, NaN for both.
    """
    if data.empty:
        return data
    keys = [*PLACE, "seed"]
    plain = data[data["alpha"] == "0"].drop_duplicates(keys)[[*keys, "value", "run"]]
    plain = plain.rename(columns={"value": "value_plain", "run": "run_plain"})
    both = data[data["alpha"] != "0"].merge(plain, on=keys, sort=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        both["value"] = np.log(both["value"]) - np.log(both["value_plain"])
    both["way"] = [f"alpha {alpha}" for alpha in both["alpha"]]
    both["rank"] = [FIRST.get(alpha, len(FIRST)) for alpha in both["alpha"]]
    return both.sort_values(["rank", "alpha_value", "way"], kind="stable")


def twins(shown: pd.DataFrame) -> pd.DataFrame:
    """The runs without QEP that those in ``shown`` are compared with."""
    return shown[["run_plain", "corpus"]].rename(columns={"run_plain": "run"})


def draw_map(
    axes: Axes, part: pd.DataFrame, variants: list[str], grids: list[str], norm: Normalize
) -> None:
    """Cells of methods (down) by grids (across) with their numbers."""
    cells = part.groupby(["variant", "grid"], sort=False)["value"].apply(
        lambda values: float(np.mean(values.to_numpy()))
    )
    for row, variant in enumerate(variants):
        for column, grid in enumerate(grids):
            value = cells.get((variant, grid))
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **_face(value, norm)))
            if value is not None:
                axes.text(
                    column, row, said(value), ha="center", va="center", color=_ink(value, norm)
                )
    axes.set_xlim(-0.5, len(grids) - 0.5)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xticks(range(len(grids)), [grid.replace(", ", "\n") for grid in grids])
    axes.set_yticks(range(len(variants)), [folded(variant, WIDTH) for variant in variants])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def said(value: float) -> str:
    """A log ratio in percent; what diverged as an arrow from without to with QEP."""
    if np.isnan(value):
        return "∞ → ∞"
    if np.isinf(value):
        return "→ ∞" if value > 0 else "∞ →"
    percent = 100 * np.expm1(value)
    text = f"{percent:+.0f}" if abs(percent) >= 99.5 else f"{percent:+.1f}"
    return "0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def colours(panels: Facets, norm: Normalize, extend: str) -> None:
    """The bar beside the panels, in percent; pointed where ``extend`` says that values lie beyond."""
    source = mpl.cm.ScalarMappable(norm, DIVERGING)
    bar = panels.figure.colorbar(
        source, ax=[axes for _, _, axes, _ in panels], shrink=0.9, aspect=15, pad=0.02,
        extend=extend,
    )  # fmt: skip
    bound = float(norm.vmax or 1)
    ticks = np.array([-bound, -bound / 2, 0, bound / 2, bound])
    bar.set_ticks(ticks.tolist(), labels=[said(tick) for tick in ticks])
    bar.set_label("change of perplexity, %")
    bar.outline.set_visible(False)


def _colour(value: float, norm: Normalize) -> tuple[float, float, float, float]:
    clipped = np.clip(value, norm.vmin or -1, norm.vmax or 1)
    colour: tuple[float, float, float, float] = mpl.colormaps[DIVERGING](norm(clipped))
    return colour


def _face(value: float | None, norm: Normalize) -> dict[str, Any]:
    if value is None:
        return {"facecolor": "white", "edgecolor": "0.8", "hatch": "////", "linewidth": 0}
    if np.isnan(value):
        return {"facecolor": "0.85", "edgecolor": "white", "linewidth": 1}
    return {"facecolor": _colour(value, norm), "edgecolor": "white", "linewidth": 1}


def _ink(value: float, norm: Normalize) -> str:
    """Black or white, whichever is easier to read on the cell."""
    if np.isnan(value):
        return "black"
    red, green, blue, _ = _colour(value, norm)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
