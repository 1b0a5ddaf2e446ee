"""What the documents say is what the committed records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis import load
from analysis.__main__ import placed
from analysis.tables.methods import methods_table
from harness.record import METRICS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("document", "folder", "metric"),
    [
        ("README.md", "default", "perplexity/wiki"),
        ("docs/methods.md", "methods", "perplexity/tokens"),
    ],
)
def test_committed_tables_equal_the_regenerated_ones(
    document: str, folder: str, metric: str
) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    table = methods_table(load(ROOT / "results" / folder).runs, metric)
    assert placed(text, folder, table) == text


def test_a_missing_place_is_named() -> None:
    with pytest.raises(KeyError, match="table: methods"):
        placed("text", "methods", "| |")


def test_every_metric_of_the_schema_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for family in METRICS:
        assert re.search(rf"`{family}(/|`)", text), family


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
