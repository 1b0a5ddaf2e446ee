"""The notebook as it is and as it is when it is run; ``make notebook`` writes the latter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "one_layer.ipynb"


def committed() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def executed() -> Any:
    """The same cells with the outputs that they have here, in a kernel of their own."""
    notebook = committed()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kernel = dict(notebook.metadata)
    client = NotebookClient(
        notebook,
        timeout=120,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(kernel)  # without the version of this Python
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(), NOTEBOOK)
