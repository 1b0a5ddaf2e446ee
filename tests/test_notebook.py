"""The notebook runs offline as it stands, and puts out what is committed: in kind, and the same figures."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebooks import NOTEBOOK, committed, executed
from runs import ROOT

NUMBER = re.compile(r"\d+(?:\.\d+)?")


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: Any) -> list[tuple[str, str]]:
    """The outputs of a cell: each a kind and its text; of a picture its size and axes."""
    return [
        (one.get("name") or " ".join(sorted(one.data)), one.get("text") or one.data["text/plain"])
        for one in cell.outputs
    ]


def masked(text: str) -> str:
    return " ".join(NUMBER.sub("#", text).split())


@pytest.mark.long
def test_the_notebook_does_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # nobody's own settings
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for cell, new in zip(code(committed()), code(executed()), strict=True):
        assert [kind for kind, _ in said(new)] == [kind for kind, _ in said(cell)]
        for (_, text), (_, other) in zip(said(new), said(cell), strict=True):
            assert masked(text) == masked(other)
            numbers = [[float(one) for one in NUMBER.findall(each)] for each in (text, other)]
            # Another order of summation rounds a few weights the other way.
            assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.3), text


def test_the_notebook_is_committed_as_it_was_executed() -> None:
    """From top to bottom, once, without a warning or what differs from machine to machine."""
    notebook = committed()
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [one.execution_count for one in cells] == list(range(1, len(cells) + 1))
    assert not any(one.metadata for one in cells)
    kinds = [kind for one in cells for kind, _ in said(one)]
    assert set(kinds) == {"stdout", "image/png text/plain"} and kinds.count("stdout") == 4
    assert len(kinds) == 8 and NOTEBOOK.stat().st_size < 400_000
