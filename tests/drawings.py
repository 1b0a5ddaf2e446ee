"""A study's figures, drawn once a process, and what stands in their axes."""

from __future__ import annotations

from functools import cache

import numpy as np
from matplotlib.axes import Axes
from synthetic import QUALITY, entry, made

from analysis import figures
from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plugins import plugins

ALL = plugins(figures)


@cache
def study() -> Frames:
    """Every method, three grids, alphas, seeds, a partial run: what a study leaves."""
    runs = [entry("none", 16)]
    for method in QUALITY:
        for bit, group in ((2, 64), (3, None), (4, None)):
            for value in (0.0, 0.5, 1.0, "auto"):
                runs += [entry(method, bit, value, seed, group_size=group) for seed in range(2)]
    runs += [entry("gptq", 3, value, part=part) for part in ("0:2", ":4") for value in (0.0, 0.5)]
    return made(*runs)


@cache
def composed() -> Frames:
    """Every method in a basis that is not its own, which :func:`study` has none of."""
    return made(
        entry("none", 16),
        *(entry(one, 3, value, transform="orthogonal") for one in QUALITY for value in (0.0, 0.5)),
    )


@cache
def drawn_study() -> dict[str, Drawing]:
    """All figures of :func:`study`, or :func:`composed`; nobody changes them."""
    return {
        name: draw(module, composed() if name == "roundings" else study())
        for name, module in ALL.items()
    }


def draw(module: object, frames: Frames) -> Drawing:
    drawing = module.draw(frames)  # type: ignore[attr-defined]
    assert drawing is not None
    return drawing


def panels(drawing: Drawing) -> list[Axes]:
    return [axes for axes in drawing.figure.axes if axes.get_label() != "<colorbar>"]


def has_line(axes: Axes, x: list[float], y: list[float]) -> bool:
    """Whether a line of ``axes`` shows just this, NaN being a gap."""
    return any(
        len(line.get_xdata()) == len(x)
        and np.allclose(np.asarray(line.get_xdata(), dtype=float), x)
        and np.allclose(np.asarray(line.get_ydata(), dtype=float), y, equal_nan=True)
        for line in axes.lines
    )


def marks(axes: Axes, gid: str) -> list[tuple[float, float]]:
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_gid() == gid
    ]
