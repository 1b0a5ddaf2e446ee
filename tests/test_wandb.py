"""The mirror in Weights & Biases: everything that the record holds, and nothing that is secret."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ROOT, configured, do
from test_faults import Broken
from wandb_log import Log, read_logs
from wandb_server import serving

from harness.records.record import Record, read_record, read_rows
from harness.settings.config import ConfigError
from harness.trackers import flat
from harness.trackers.wandb import WandbTracker, shortened

KEY = "5ec7e7" + "0" * 34
SUMMARY = {"model": "m", "method": "rtn", "bits": 2, "alpha": 1.0}
FILES = ["record.json", "layers.jsonl", "blocks.jsonl", "config.yaml"]


@dataclass
class Mirrored:
    """Two runs, the second one's baseline among them, on disk and in W&B."""

    folder: Path
    record: Record
    log: Log
    baseline: Record
    baseline_log: Log


@pytest.fixture(scope="module")
def mirrored(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mirrored:
    folder = tmp_path_factory.mktemp("mirrored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEP_BENCH_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("A_TOKEN", "whispered")
        questions = folder / "questions.jsonl"
        rows = [{"query": "the river", "choices": ["is far", "of stone"], "gold": 0}] * 3
        questions.write_text("\n".join(map(json.dumps, rows)))
        more = ("method=quantease", "method.iterations=4", f"eval.tasks=[{questions}]")
        config = configured(tiny_folder, folder, "tracker=wandb", "calibration.holdout=2", *more)
        record = do(config)
    logs = read_logs(folder / "local" / "wandb")
    baseline = read_record(folder / "local" / (record.baseline or ""))
    return Mirrored(folder / "local", record, logs[record.run], baseline, logs[baseline.run])


def test_every_number_of_the_record_is_in_the_summary(mirrored: Mirrored) -> None:
    for record, log in (
        (mirrored.record, mirrored.log),
        (mirrored.baseline, mirrored.baseline_log),
    ):
        numbers = flat.scalars(record)
        assert record.metrics.keys() < numbers.keys()
        assert {f"seconds/{key}" for key in record.seconds} < numbers.keys()
        assert {f"flops/{key}" for key in record.flops} < numbers.keys()
        for key, value in numbers.items():
            assert log.summary[key] == value, key
        assert log.summary["status"] == "done" and log.exit_code == 0
        assert log.summary["hashes"] == record.hashes
        assert log.summary["contents"] == record.contents


def test_everything_that_is_measured_is_documented(mirrored: Mirrored) -> None:
    lines = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("|")]
    names = [name for cell in cells for name in re.findall("`([^`]+)`", cell)]
    known = {
        re.sub("<[a-z]+>", ".+", name.replace("/<linear>", "(_heldout)?/.+")) for name in names
    }
    known |= {"seconds/.+", "flops/.+"}  # documented as `seconds` and `flops` per phase
    pattern = re.compile(f"({'|'.join(known)})(_heldout)?")
    directory = mirrored.folder / mirrored.record.run
    files = [read_rows(directory / name) for name in ("layers.jsonl", "blocks.jsonl")]
    keys = {key for rows in files for row in rows for key in row}
    for log in (mirrored.log, mirrored.baseline_log):
        keys |= log.summary.keys() | {key for row in log.history for key in row}
    keys |= flat.scalars(mirrored.record).keys()
    assert {"accuracy/questions", "perplexity/text", "trace/loss", "seconds/walk"} <= keys
    assert sorted(key for key in keys if key[0] != "_" and not pattern.fullmatch(key)) == []
    assert not pattern.fullmatch("anything") and not pattern.fullmatch("error/slope")


def test_the_configuration_can_be_grouped_and_filtered(mirrored: Mirrored) -> None:
    log = mirrored.log
    assert log.config["recipe"] == mirrored.record.config
    assert log.config["method"] == "quantease" and log.config["bits"] == 3
    assert log.config["baseline"] == mirrored.baseline.run
    assert log.group == "local"
    assert log.tags == [mirrored.record.summary["model"], "quantease", "3 bits", "alpha 0.5"]
    assert mirrored.baseline_log.tags[1:] == ["none"]


def test_curves_over_depth_have_the_block_as_their_axis(mirrored: Mirrored) -> None:
    log, directory = mirrored.log, mirrored.folder / mirrored.record.run
    assert log.axes == {"depth/*": "block", "trace/*": "iteration"}
    for suffix in ("", "_heldout"):
        key = f"relative_error{suffix}"
        rows = read_rows(directory / "blocks.jsonl")
        assert log.curve(f"depth/{key}", "block") == [(row["block"], row[key]) for row in rows]
    rows = [r for r in read_rows(directory / "layers.jsonl") if r["role"] == "k_proj"]
    for error in ("rounding_error", "local_error", "total_error"):
        for suffix in ("", "_heldout"):
            key = f"depth/relative_{error}{suffix}/self_attn/k_proj"
            points = [(r["block"], r[error + suffix] / r["signal" + suffix]) for r in rows]
            assert log.curve(key, "block") == points
    assert log.curve("depth/alpha/mlp/down_proj", "block") == [(0, 0), (1, 0), (2, 0)]


def test_curves_over_iterations_are_summed_over_linears(mirrored: Mirrored) -> None:
    rows = read_rows(mirrored.folder / mirrored.record.run / "layers.jsonl")
    loss = [sum(row["traces"]["loss"][at] for row in rows) for at in range(4)]
    curve = mirrored.log.curve("trace/loss", "iteration")
    assert [at for at, _ in curve] == [0, 1, 2, 3]
    assert [value for _, value in curve] == pytest.approx(loss)


def test_tables_hold_every_row(mirrored: Mirrored) -> None:
    log, directory = mirrored.log, mirrored.folder / mirrored.record.run
    layers = read_rows(directory / "layers.jsonl")
    assert log.table("layers") == [
        {k: v for k, v in row.items() if k != "traces"} for row in layers
    ]
    assert log.table("blocks") == read_rows(directory / "blocks.jsonl")
    samples: dict[str, list[float]] = {}
    for row in log.table("samples"):
        samples.setdefault(row["sample"], []).append(row["value"])
    assert samples == mirrored.record.samples


def test_histograms_count_every_linear(mirrored: Mirrored) -> None:
    last = mirrored.log.history[-1]
    found = {key: value for key, value in last.items() if key.startswith("histogram/")}
    assert len(found) == 6
    assert [sum(one["values"]) for one in found.values()] == [21] * 6


def test_the_files_of_the_record_are_files_of_the_run(mirrored: Mirrored) -> None:
    log, directory = mirrored.log, mirrored.folder / mirrored.record.run
    assert {f"record/{name}" for name in FILES} <= set(log.files)
    for name in FILES:
        copy = log.folder / "files" / "record" / name
        assert copy.read_bytes() == (directory / name).read_bytes()
        assert not copy.is_symlink()


def test_no_secret_and_no_host_is_in_the_mirror(mirrored: Mirrored) -> None:
    written = [path for path in (mirrored.folder / "wandb").rglob("*") if path.is_file()]
    assert len(written) > 10
    host = socket.gethostname().encode()
    for path in written:
        content = path.read_bytes()
        assert b"5ec7e7" not in content and b"whispered" not in content, path
        assert len(host) < 6 or host not in content, path


def test_wandb_sync_uploads_the_record(mirrored: Mirrored, tmp_path: Path) -> None:
    copy = tmp_path / mirrored.log.folder.name
    shutil.copytree(mirrored.log.folder, copy, ignore=shutil.ignore_patterns("*.log"))
    with serving() as server:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--yes", str(copy)],
            env={**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY},
            capture_output=True,
            text=True,
        )
    assert "Finished syncing" in done.stdout + done.stderr, done.stderr
    for name in FILES:
        content = (mirrored.folder / mirrored.record.run / name).read_bytes()
        assert server.files[f"record/{name}"] == content
    tables = sorted(name.split("_")[0] for name in server.files if name.startswith("media/table"))
    assert [name.removeprefix("media/table/") for name in tables] == [
        "blocks",
        "layers",
        "samples",
    ]


def test_a_failed_run_is_marked_as_failed(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(tiny_folder, tmp_path, "tracker=wandb", "method=rtn", "baseline=false",
                        "eval.divergence=false")  # fmt: skip
    with pytest.raises(ArithmeticError):
        do(replace(config, method=Broken()))
    (log,) = read_logs(tmp_path / "local" / "wandb").values()
    assert log.exit_code == 1
    assert log.summary["status"] == "failed" and "failed" in log.tags
    assert log.summary["failure"] == "ArithmeticError: the third wheel came off"
    assert "record/record.json" in log.files


def row(**values: object) -> dict[str, object]:
    plain = {"name": "b.0.q", "block": 0, "role": "q", "alpha": 0.5}
    errors = {"rounding_error": 1.0, "local_error": 2.0, "total_error": 3.0, "signal": 4.0}
    return plain | errors | values


def test_a_diverged_run_is_mirrored_and_an_abandoned_one_is_no_failure(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    record = Record("run", "stopped", summary=dict(SUMMARY))
    record.stopped, record.resumed = {"block": 0, "relative_error": math.nan}, 1
    record.metrics = {"perplexity/x": math.inf, "error/growth": math.nan}
    tracker = WandbTracker()
    tracker.start(record, directory)
    tracker.layer(row(total_error=math.inf))
    tracker.layer(row(name="b.0.k", total_error=math.nan, signal=math.inf))
    tracker.layer(row(name="b.0.v", signal=0.0))
    tracker.block({"block": 0, "name": "b.0", "relative_error": math.nan})
    tracker.finish(record)
    (log,) = read_logs(tmp_path / "wandb").values()
    assert log.exit_code == 0 and "stopped" in log.tags
    assert log.summary["stopped"]["block"] == 0 and log.summary["resumed"] == 1
    assert log.summary["perplexity/x"] == math.inf and math.isnan(log.summary["error/growth"])
    assert math.isnan(log.curve("depth/relative_error", "block")[0][1])
    assert log.curve("depth/relative_total_error/q", "block") == [(0, math.inf)]
    assert log.curve("depth/relative_total_error/v", "block") == []
    assert "histogram/relative_total_error" not in log.history[-1]
    assert sum(log.history[-1]["histogram/relative_local_error"]["values"]) == 2
    assert [r["signal"] for r in log.table("layers")] == [4.0, math.inf, 0.0]


def test_names_are_cut_to_what_wandb_takes_and_stay_distinct(tmp_path: Path) -> None:
    """A tag too long costs the whole mirror, at once or in the end when it is uploaded."""
    directory = tmp_path / ("set" * 60) / "run"
    directory.mkdir(parents=True)
    for end in "ab":
        model = "é" * 70 + end
        record = Record(f"{model}-rtn-w2", "done", summary={**SUMMARY, "model": model})
        tracker = WandbTracker()
        tracker.start(record, directory)
        tracker.finish(record)
    logs = list(read_logs(directory.parent / "wandb").values())
    assert len({log.name for log in logs}) == len({log.tags[0] for log in logs}) == 2
    for log in logs:
        assert max(len(log.name.encode()), len((log.group or "").encode())) <= 128
        assert max(len(tag.encode()) for tag in log.tags) <= 64
        assert log.tags[0].startswith("é" * 20) and log.tags[1:] == ["rtn", "2 bits", "alpha 1"]
        assert log.summary["run"].startswith("é" * 70) and log.exit_code == 0


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.integers(10, 60))
def test_a_shortened_name_fits_and_tells_names_apart(one: str, other: str, most: int) -> None:
    short = shortened(one, most)
    assert len(short.encode()) <= most and short == shortened(one, most)
    assert short == one or len(one.encode()) > most
    assert one == other or short != shortened(other, most)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("1 validation error for Settings\nrun_tags\n  Value error, too long"),
        wandb.errors.UsageError("no key"),
        OSError(28, "No space left on device"),
        AssertionError(),
    ],
    ids=repr,
)
def test_a_mirror_that_cannot_start_is_named_in_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    def refusing(**_: object) -> None:
        raise error

    monkeypatch.setattr(wandb, "init", refusing)
    (tmp_path / "run").mkdir()
    tracker, record = WandbTracker(), Record("that-run", "done", summary=dict(SUMMARY))
    tracker.start(record, tmp_path / "run")
    tracker.layer(row())
    tracker.block({"block": 0, "name": "b.0", "relative_error": 0.5})
    tracker.finish(record)
    (line,) = [one for one in caplog.messages if "W&B" in one]
    assert "that-run has no mirror" in line and "\n" not in line
    assert " ".join((str(error) or "AssertionError").split()) in line


def test_a_home_that_cannot_be_written_costs_no_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("no folder")
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home" / "wandb"))
    (tmp_path / "run").mkdir()
    record = Record("run", "done", summary=dict(SUMMARY), samples={"loss/x": [0.5]})
    tracker = WandbTracker()
    tracker.start(record, tmp_path / "run")
    tracker.finish(record)
    (log,) = read_logs(tmp_path / "wandb").values()
    assert log.table("samples") == [{"sample": "loss/x", "index": 0, "value": 0.5}]
    assert [one for one in caplog.messages if "W&B" in one] == []


def test_a_table_with_more_rows_than_wandb_keeps_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb.Table, "MAX_ARTIFACT_ROWS", 3)
    (tmp_path / "run").mkdir()
    record = Record("run", "done", summary=dict(SUMMARY), samples={"loss/x": [0.0, 1.0, 2.0, 3.0]})
    tracker = WandbTracker()
    tracker.start(record, tmp_path / "run")
    tracker.finish(record)
    (log,) = read_logs(tmp_path / "wandb").values()
    assert [one["value"] for one in log.table("samples")] == [0.0, 1.0, 2.0]
    (line,) = [one for one in caplog.messages if "W&B" in one]
    assert line == "W&B's table samples has the first 3 of 4 rows; its files in record/ have all"


def test_one_that_stopped_early_stays_where_it_was() -> None:
    rows = [row(traces={"loss": [4.0, 2.0]}), row(traces={"loss": [1.0]}), row()]
    assert flat.trace_points(rows) == [
        {"iteration": 0, "trace/loss": 5.0},
        {"iteration": 1, "trace/loss": 3.0},
    ]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tracker.timeout=0", "tracker.timeout=0.0: must be a positive number"),
        ("tracker.project=a/b", "tracker.project='a/b': 1 to 128 characters"),
        ("tracker.mode=onlin", "tracker.mode='onlin'"),
    ],
)
def test_bad_options_are_told_before_anything_starts(
    tiny_folder: Path, tmp_path: Path, word: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        configured(tiny_folder, tmp_path, "tracker=wandb", word)


def test_a_sweeps_agent_gets_the_job_and_not_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    tracker = WandbTracker()
    tracker.start(Record("run", summary={**SUMMARY, "method": "none"}), tmp_path / "run")
    tracker.finish(Record("run"))
    assert not (tmp_path / "wandb").exists()
