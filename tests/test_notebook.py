"""The notebook runs offline as it stands, and puts out what is committed: in kind, and the same figures."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from runs import ROOT

NOTEBOOK = ROOT / "docs" / "one_layer.ipynb"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def said(cell: Any) -> list[tuple[str, str]]:
    """The outputs of a cell: each a kind and its text; of a picture its size and axes."""
    return [
        (
            " ".join(sorted(one.get("data", {"stdout": ""}))),
            one.get("text") or one.data["text/plain"],
        )
        for one in cell.outputs
    ]


def masked(text: str) -> str:
    return " ".join(NUMBER.sub("#", text).split())


def test_the_notebook_does_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # nobody's own settings
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    )
    committed = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(committed)
    again = nbformat.from_dict(committed)
    for cell in again.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(again, timeout=120, coalesce_streams=True, resources=folder).execute()
    pictures = 0
    for cell, new in zip(committed.cells, again.cells, strict=True):
        if cell.cell_type != "code":
            continue
        assert [kind for kind, _ in said(new)] == [kind for kind, _ in said(cell)]
        for (kind, text), (_, other) in zip(said(new), said(cell), strict=True):
            pictures += "image/png" in kind
            assert masked(text) == masked(other)
            numbers = [[float(one) for one in NUMBER.findall(each)] for each in (text, other)]
            # Another order of summation rounds a few weights the other way.
            assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.3), text
    assert pictures == 4


def test_the_notebook_is_committed_as_it_was_executed() -> None:
    """From top to bottom, once, and without what differs from machine to machine."""
    cells = [one for one in nbformat.read(NOTEBOOK, as_version=4).cells if one.cell_type == "code"]
    assert [one.execution_count for one in cells] == list(range(1, len(cells) + 1))
    assert all(not one.metadata for one in cells)
    assert {kind for one in cells for kind, _ in said(one)} == {"stdout", "image/png text/plain"}
    assert NOTEBOOK.stat().st_size < 400_000
