"""The table at the end of a sweep: what is best, what settings read like, whose figures share a column."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import rich.console

from harness.command.console import Console
from harness.command.final_table import told_apart
from harness.records.record import Record

INF, NAN = math.inf, math.nan


def run(name: str, method: str = "rtn", alpha: float = 0.0, **metrics: float) -> Record:
    """A finished run; ``wiki`` stands for ``perplexity/wiki``, ``quiz`` for ``accuracy/quiz``."""
    record = Record(name, "done", seconds={"total": 1.0}, bits_per_weight=3.0, baseline="full")
    record.summary = {
        "model": "m",
        "method": method,
        "bits": 3,
        "group_size": None,
        "alpha": alpha,
    }
    names = {"wiki": "perplexity/wiki", "web": "perplexity/web", "quiz": "accuracy/quiz"}
    record.metrics = {names[key]: value for key, value in metrics.items()}
    return record


def printed(records: list[Record], full: dict[str, float] | None = None) -> list[list[str]]:
    """The rows of the table as words, from "bits" on."""
    baseline = run("full", "none", **({"wiki": 10.0} if full is None else full))
    out = io.StringIO()
    console = Console(rich.console.Console(file=out, width=200))
    console.summary(records, {"full": baseline}, "results/x")
    return [line.split() for line in out.getvalue().splitlines() if line.strip()]


def marked(records: list[Record], **full: float) -> dict[str, list[str]]:
    """By method, the words of its row that are marked best."""
    rows = printed(records, full or None)
    return {row[0]: [row[i - 1] for i, word in enumerate(row) if word == "*"] for row in rows}


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ((INF, INF), []),
        ((NAN, NAN), []),
        ((INF, 30.0), ["b"]),
        ((NAN, 30.0), ["b"]),
        ((20.0, NAN), ["a"]),
        ((20.0, 30.0), ["a"]),
        ((20.0, 20.0), ["a", "b"]),
    ],
)
def test_only_what_is_finite_is_best_and_equals_share_it(
    values: tuple[float, float], best: list[str]
) -> None:
    found = marked([run(name, name, wiki=x) for name, x in zip("ab", values, strict=True)])
    assert [name for name in "ab" if found[name]] == best
    accuracies = [run(name, name, wiki=1.0, quiz=x) for name, x in zip("ab", values, strict=True)]
    higher = {"ab": "ab", "a": "b", "b": "a"} if values == (20.0, 30.0) else {}
    expected = [*higher.get("".join(best), "".join(best))]
    found = marked(accuracies)
    assert [name for name in "ab" if len(found[name]) > 1] == expected


def test_one_run_is_not_the_best_of_one() -> None:
    assert marked([run("a", "a", wiki=20.0)])["a"] == []
    assert marked([run("a", "a", wiki=20.0, web=5.0), run("b", "b", wiki=30.0)])["a"] == ["20"]


def test_a_ratio_needs_a_finite_reference_on_the_same_corpus() -> None:
    def ratio(record: Record, **full: float) -> str:
        row = next(row for row in printed([record], full) if row[0] == "a")
        return row[row.index("3.00") - 1]  # before bits/weight

    assert ratio(run("a", "a", wiki=20.0), wiki=10.0) == "2.00"
    assert ratio(run("a", "a", wiki=20.0), web=10.0) == "–"
    assert ratio(run("a", "a", web=30.0, wiki=20.0), wiki=10.0) == "2.00"
    assert ratio(run("a", "a", wiki=20.0), wiki=INF) == "–"
    assert ratio(run("a", "a", wiki=INF), wiki=10.0) == "inf"


def test_settings_are_said_in_words_whatever_their_values_are() -> None:
    values: list[Any] = [["a"], ["a", "b"], [], None, True, "[bold]", [{"k": [1, None]}]]
    texts = ["[a]", "[a,b]", "[]", "null", "true", "[bold]", "[{k:[1,null]}]"]
    records = [run(f"r{index}", wiki=20.0 + index) for index in range(len(values))]
    for record, value in zip(records, values, strict=True):
        record.config = {"eval": {"tasks": value}}
    said = [f"eval tasks {text}".removesuffix(" true") for text in texts]
    assert list(told_apart(records).values()) == said
    rows = [" ".join(row) for row in printed(records) if row[0] == "rtn"]
    assert all(f"rtn {one} 3 " in row for one, row in zip(said, rows, strict=True))


def test_long_settings_get_letters_and_no_column_is_cut_short() -> None:
    records = [run(name, "a", wiki=x) for name, x in (("a", 20.0), ("b", 30.0), ("c", 40.0))]
    tasks = [["x" * 50, "y" * 50], ["z"], ["z"]]
    for record, value in zip(records, tasks, strict=True):
        record.config = {"eval": {"tasks": value}}
    records[2].config |= {"seed": 1}
    rows = printed(records)
    assert [row[1] for row in rows if row[0] == "a"] == ["(a)", "(b)", "(c)"]
    assert f"(a) eval tasks [{'x' * 50},{'y' * 50}]".split() in rows
    assert ["(c)", "eval", "tasks", "[z],", "seed", "1"] in rows
    for width in (40, 80):  # a narrow terminal wraps a line instead
        out = io.StringIO()
        narrow = rich.console.Console(file=out, width=width, force_terminal=True, no_color=True)
        Console(narrow).summary(records, {"full": run("full", "none", wiki=10.0)}, "x")
        assert "…" not in out.getvalue() and "bits/weight" in out.getvalue()


def test_a_mapping_is_one_setting_a_key() -> None:
    records = [run("a", wiki=1.0), run("b", wiki=2.0)]
    records[0].config = {"method": {"outliers": {"fraction": 0.01, "structured": False}}}
    records[1].config = {"method": {"outliers": None}}
    first, second = told_apart(records).values()
    assert first == "1 % outliers, no outliers structured"
    assert second == "outliers null"


def test_two_protocols_never_share_a_column_and_are_named() -> None:
    records = [run("a", "a", wiki=20.0), run("b", "b", wiki=30.0), run("c", "c", wiki=40.0)]
    for record, protocol in zip(records, ("default", "paper", "paper"), strict=True):
        record.summary |= {"protocol": protocol, "bos": {"wiki": "first", "calibration": "first"}}
    rows = printed(records, {})
    assert next(row for row in rows if "method" in row)[3:7] == [
        "wiki",
        "(default)",
        "wiki",
        "(paper)",
    ]
    cells = {row[0]: row[3:6] for row in rows if row[0] in "abc"}
    assert cells == {"a": ["20", "–", "–"], "b": ["–", "30", "*"], "c": ["–", "40", "–"]}
    said = "Protocols: default (start token: first); paper (start token: first); unnamed in older records."
    assert said.split() in rows
    for record in records:
        record.summary["protocol"] = "paper"
    titles = next(row for row in printed(records) if "method" in row)
    assert "wiki" in titles and "(paper)" in titles  # full precision is of an older record


def test_the_spread_over_repeats_stands_beside_a_figure() -> None:
    repeated, other = run("a", "a", wiki=20.0, quiz=0.5), run("b", "b", wiki=30.0)
    repeated.metrics |= {"noise/perplexity/wiki": 0.05, "noise/accuracy/quiz": 0.02}
    rows = {row[0]: row[3:] for row in printed([repeated, other])}
    assert rows["a"][:6] == ["20", "±1", "*", "0.5", "±0.02", "2.00"]
    assert rows["b"][:3] == ["30", "–", "3.00"]
