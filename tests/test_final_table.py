"""The table at the end on narrow screens: what stays, what is said to be left out, that nothing is cut."""

from __future__ import annotations

import io
import re

import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st
from test_console import run

from harness.command.console import Console
from harness.command.final_table import PHASES, Column, fitting
from harness.records.record import Record

WORDS = ("quantise", "evaluate", "correct", "walk")


def sweep(corpora: int = 2, tasks: int = 4) -> list[Record]:
    """Runs of which two differ in settings, with several metrics, as a real sweep has them."""
    records = []
    for place, (method, damping) in enumerate((("gptq", 0.01), ("gptq", 0.1), ("quantease", 0.0))):
        record = run(f"r{place}", method, 0.5)
        record.metrics = {
            f"perplexity/corpus{n}": 12345.678 / (place + n + 1) for n in range(corpora)
        }
        record.metrics |= {f"accuracy/task_{n}": 0.5123 + place / 100 for n in range(tasks)}
        record.seconds |= dict.fromkeys(PHASES, 1234.5)
        record.config = {"method": {"damping": damping}, "seed": 0}
        records.append(record)
    return records


def on_terminal(records: list[Record], width: int, wide: bool = False) -> list[str]:
    """The lines on a terminal so many columns wide."""
    out = io.StringIO()
    terminal = rich.console.Console(
        file=out, width=width, force_terminal=True, no_color=True, soft_wrap=True
    )
    baseline = run("full", "none")
    baseline.metrics = {"perplexity/corpus0": 10.0}
    Console(terminal, wide).summary(records, {"full": baseline}, "results/x")
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()


@settings(deadline=None, max_examples=25)
@given(st.integers(40, 220), st.integers(1, 4), st.integers(0, 6))
def test_what_identifies_a_run_and_its_first_metric_stay_whole_on_every_screen(
    width: int, corpora: int, tasks: int
) -> None:
    records = sweep(corpora, tasks)
    lines = on_terminal(records, width)
    text = "\n".join(lines)
    assert "…" not in text
    for record in records:
        first = f"{record.metrics['perplexity/corpus0']:.4g}"
        assert any(
            line.startswith(record.summary["method"]) and f" {first}" in line for line in lines
        )
    end = next(at for at, line in enumerate(lines) if line.startswith("quantease")) + 1
    table = [line for line in lines[:end] if line.strip()]
    assert width < 70 or max(map(len, table)) <= width
    titles = " ".join(" ".join(table[:2]).split())
    for name in WORDS:  # shown, or named as left out
        assert (name in titles) != any(
            line.startswith("no room for") and name in line for line in lines
        )


def test_times_go_first_and_metrics_last() -> None:
    gone: list[str] = []
    for width in range(200, 40, -4):
        found = on_terminal(sweep(), width)
        said = next((line for line in found if line.startswith("no room for: ")), "")
        names = re.sub(r"no room for: |;.*", "", said).split(", ") if said else []
        gone += [name for name in names if name not in gone]
        assert set(gone) == set(names)  # what has gone on a wider screen never comes back
    timing, rest = gone[: len(PHASES)], gone[len(PHASES) :]
    assert timing == [*reversed(PHASES)]
    assert rest[:3] == ["peak GB", "bits/weight", "ratio"]
    assert rest[3] == "accuracy/task_3" and "perplexity/corpus0" not in rest


def test_at_80_columns_a_usual_sweep_shows_its_metrics_and_says_where_the_rest_is() -> None:
    lines = on_terminal(sweep(1, 2), 80)
    assert any("perplexity" in line and "accuracy" in line for line in lines)
    said = next(line for line in lines if line.startswith("no room for: "))
    assert said.endswith("; --wide shows all, as do the records")
    assert lines[-1] == "records: results/x; compared: python -m analysis dashboard results/x"


def test_wide_shows_all_on_a_narrow_screen() -> None:
    lines = on_terminal(sweep(), 60, wide=True)
    assert not any(line.startswith("no room for") for line in lines)
    assert any("peak GB" in line for line in lines)


def test_columns_that_identify_a_run_never_go() -> None:
    columns = [Column("method", ["x" * 90]), Column("walk", ["1"], leaves=6)]
    assert fitting(columns, 80) == ([columns[0]], [columns[1]])
    assert fitting(columns, None) == (columns, [])
