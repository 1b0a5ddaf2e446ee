"""Whole runs on a tiny checkpoint: what lies on disk, what is skipped, what is mirrored."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import configured, do, quiet_console
from wandb.proto import wandb_internal_pb2

from harness import pipeline
from harness.record import read_record, read_rows

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
    for path in (Path(os.environ["QEP_BENCH_CACHE"]) / "reference").iterdir():
        path.unlink()
    second = do(configured(tiny_folder, tmp_path, "method=rtn", "force=true"))
    assert second.metrics == first.metrics


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


def settled(path: Path) -> list[wandb_internal_pb2.Record]:
    """The records of an offline file once its writer, a process of W&B's, is done with it."""
    for _ in range(200):
        records = read_wandb(path)
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.05)
    return records


def read_wandb(path: Path) -> list[wandb_internal_pb2.Record]:
    """The records of an offline W&B file: a header of 7 bytes, then LevelDB log framing."""
    data, at, parts, found = path.read_bytes(), 7, b"", []
    block = 32768
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def test_wandb_mirrors_the_record_offline(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(tiny_folder, tmp_path, "tracker=wandb", "method=rtn")
    record = do(config)
    files = list((tmp_path / "local" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # the baseline and the run
    by_name = {}
    for path in files:
        records = settled(path)
        name = next(r.run.display_name for r in records if r.WhichOneof("record_type") == "run")
        by_name[name] = (records, path)
    records, path = by_name[record.run]
    opened = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert opened.run_group == "local"
    values = {item.key: json.loads(item.value_json) for item in opened.config.update}
    assert values["method"] == "rtn"
    assert values["recipe"] == record.config
    summary: dict[str, object] = {}
    for one in records:
        if one.WhichOneof("record_type") == "summary":
            for item in one.summary.update:
                summary["/".join([item.key, *item.nested_key]).strip("/")] = json.loads(
                    item.value_json
                )
    assert summary["perplexity/text"] == pytest.approx(record.metrics["perplexity/text"])
    history = [r.history for r in records if r.WhichOneof("record_type") == "history"]
    depth = [
        float(item.value_json)
        for row in history
        for item in row.item
        if "depth/relative_error" in (item.key, *item.nested_key)
    ]
    blocks = read_rows(config.directory / "blocks.jsonl")
    assert depth == pytest.approx([row["relative_error"] for row in blocks])
    tables = list((path.parent / "files" / "media" / "table").glob("layers_*.json"))
    assert len(json.loads(tables[0].read_text())["data"]) == 21
