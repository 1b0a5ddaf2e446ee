"""Whole runs on a tiny checkpoint: what lies on disk, what is skipped, what is mirrored."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import configured, do, quiet_console

from harness import pipeline
from harness.records.record import read_record, read_rows

ROOT = Path(__file__).parent.parent


def test_a_run_leaves_a_complete_record(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(tiny_folder, tmp_path, "calibration.holdout=2")
    record = do(config)
    assert record == read_record(config.directory)
    assert record.status == "done"
    assert record.summary["calibration_tokens"] == 64
    assert record.metrics["perplexity/text"] > 1
    assert len(record.samples["loss/text"]) == 4
    perplexity = np.exp(np.mean(record.samples["loss/text"]))
    assert record.metrics["perplexity/text"] == pytest.approx(perplexity)
    assert {"model", "calibration", "text"} <= record.hashes.keys()
    assert {"walk", "correct", "quantise", "evaluate", "total"} <= record.seconds.keys()
    assert record.flops["walk"] > 0 and record.peak_memory > 0
    assert 3 < record.bits_per_weight < 5
    layers = read_rows(config.directory / "layers.jsonl")
    assert len(layers) == 3 * 7
    for row in layers:
        assert row["total_error_heldout"] >= 0
        assert row["alpha"] == (0 if row["role"] == "down_proj" else 0.5)
        assert 0 < row["rounding_error"] < row["signal"]
    blocks = read_rows(config.directory / "blocks.jsonl")
    assert [row["block"] for row in blocks] == [0, 1, 2]
    assert record.metrics["error/last_block"] == blocks[-1]["relative_error"]
    logs = np.log([row["relative_error"] for row in blocks])
    assert record.metrics["error/growth"] == pytest.approx((logs[2] - logs[0]) / 2)
    baseline = read_record(tmp_path / "local" / (record.baseline or ""))
    assert baseline.metrics["kl/text"] == 0
    assert sorted(os.listdir(config.directory)) == [
        "blocks.jsonl",
        "config.yaml",
        "layers.jsonl",
        "record.json",
    ]


def test_a_finished_run_is_skipped_quickly_and_force_repeats_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = configured(tiny_folder, tmp_path, "method=rtn")
    first = do(config)
    console, text = quiet_console()
    start = time.perf_counter()
    again = pipeline.run(config, console)
    assert time.perf_counter() - start < 0.05
    assert again == first
    assert "done already, skipped" in text.getvalue()
    forced = do(replace(config, force=True))
    assert forced.metrics == first.metrics


def test_the_baseline_is_measured_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed = []
    execute = pipeline.execute
    monkeypatch.setattr(
        pipeline,
        "execute",
        lambda config, *rest: (executed.append(config.method_name), execute(config, *rest))[1],
    )
    do(configured(tiny_folder, tmp_path, "method=rtn"))
    do(configured(tiny_folder, tmp_path, "method=gptq"))
    do(configured(tiny_folder, tmp_path, "method=none"))
    assert executed == ["none", "rtn", "gptq"]


def test_a_lost_cache_is_made_again(tiny_folder: Path, tmp_path: Path) -> None:
    first = do(configured(tiny_folder, tmp_path, "method=rtn"))
    shutil.rmtree(Path(os.environ["QEP_BENCH_CACHE"]) / "computed")
    second = do(configured(tiny_folder, tmp_path, "method=rtn", "force=true"))
    assert second.metrics == first.metrics


def test_a_full_cache_never_takes_from_a_run_what_it_needs(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = do(configured(tiny_folder, tmp_path, "method=rtn"))
    config = configured(tiny_folder, tmp_path, "method=rtn", "force=true", "cache.max_gb=1e-9")
    quantize, other = pipeline.quantize, pipeline.computed(config)

    def meanwhile(*arguments: Any) -> None:
        with other.create("large") as folder:
            (folder / "data").write_bytes(bytes(1000))
        quantize(*arguments)

    monkeypatch.setattr(pipeline, "quantize", meanwhile)
    assert do(config).metrics == first.metrics
    with other.create("larger"):
        pass
    assert os.listdir(other.folder) == [".lock", "larger"], "it goes as soon as nobody needs it"


def test_runs_are_reproducible_and_the_order_of_a_sweep_does_not_matter(
    tiny_folder: Path, tmp_path: Path
) -> None:
    methods = ("gptq", "rtn")
    one = [do(configured(tiny_folder, tmp_path / "a", f"method={m}")) for m in methods]
    two = [do(configured(tiny_folder, tmp_path / "b", f"method={m}")) for m in methods[::-1]]
    assert [record.metrics for record in one] == [record.metrics for record in two[::-1]]


def test_propagation_changes_the_result_and_alpha_zero_does_not_depend_on_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    off = do(configured(tiny_folder, tmp_path, "qep.alpha=0"))
    on = do(configured(tiny_folder, tmp_path, "qep.alpha=1", "qep.skip=[]"))
    assert on.metrics["perplexity/text"] != off.metrics["perplexity/text"]
    assert on.metrics["error/last_block"] < off.metrics["error/last_block"]


def test_alpha_auto_is_recorded_for_every_linear(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(tiny_folder, tmp_path, "qep.alpha=auto", "calibration.holdout=2")
    do(config)
    rows = read_rows(config.directory / "layers.jsonl")
    assert all(0 <= row["alpha"] <= 1 for row in rows)
    assert len({row["alpha"] for row in rows}) > 3


def test_the_ridges_of_correction_and_method_are_recorded(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = configured(tiny_folder, tmp_path, "method=gptq", "method.damping=0.02", "qep.skip=[]")
    do(config)
    for row in read_rows(
        config.directory / "layers.jsonl"
    ):  # of one H, with a damping of 0.1 there
        assert 0 < row["ridge"] == pytest.approx(5 * row["method_ridge"])


def test_exact_tokens_give_the_run_of_their_corpus(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(tiny_folder, tmp_path, "save_tokens=true")
    first = do(config)
    saved = config.directory / "tokens.npz"
    second = do(
        configured(
            tiny_folder, tmp_path, "calibration=tokens", f"calibration.path={saved}",
            "~calibration.length", "~calibration.windows",
        )
    )  # fmt: skip
    assert second.run != first.run
    assert second.metrics == first.metrics
    assert second.hashes == first.hashes


def test_the_table_tells_runs_apart_that_differ_in_other_settings(
    tiny_folder: Path, tmp_path: Path
) -> None:
    more = (["method.damping=0.1"], ["symmetric=true", "seed=1"], ["bits=4"])
    records = [
        do(configured(tiny_folder, tmp_path, "baseline=false", "eval.divergence=false", *m))
        for m in more
    ]
    console, text = quiet_console()
    console.summary(records, {}, "somewhere")
    _, head, *rows = text.getvalue().strip().splitlines()
    assert head.split()[:3] == ["method", "settings", "bits"]
    assert "damping 0.1, seed 0, asymmetric" in rows[0]
    assert "damping 0.01, seed 1, symmetric" in rows[1]
    assert rows[2].split()[:2] == ["gptq", "4"]
    console, text = quiet_console()
    console.summary(records[1:], {}, "somewhere")
    assert "settings" not in text.getvalue()
