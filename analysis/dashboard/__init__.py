"""One HTML page of all runs, complete in itself: it asks no network for anything.

plotly draws. What a record says is data and nothing else: it reaches the page as base64 of
deflated JSON, is shown as text, and a content security policy that names the page's two scripts by
their hashes keeps everything else from running or leaving. plotly is deflated as well and started
once the table stands: a megabyte instead of five, and a reader needn't wait for it.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from string import Template

from plotly.offline import get_plotlyjs

from analysis.dashboard.payload import layers_payload, pack, pack_json, runs_payload
from analysis.load import Frames

__all__ = ["build"]

# In the order in which they read each other.
SCRIPTS = ("data.js", "state.js", "table.js", "plots.js", "figures.js")
SCRIPTS += ("detail.js", "compare.js", "main.js")


def build(frames: Frames) -> str:
    """The page with every run of ``frames``.

    Raises:
        ValueError: two runs have one name, so that rows could not be told apart.
    """
    names = frames.runs["run"].tolist()
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"runs: {len(twice)} names stand for two runs, the first {twice[0]}")
    plotly, script = get_plotlyjs(), "\n".join(_own(name) for name in SCRIPTS)
    return Template(_own("page.html")).substitute(
        policy=f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src '{_digest(plotly)}' '{_digest(script)}'",
        style=_own("style.css"),
        script=script,
        plotly=pack(plotly),
        runs=pack_json(runs_payload(frames)),
        layers=pack_json(layers_payload(frames)),
    )


def _own(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """How a content security policy names a script, which runs as it stands between its tags."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
