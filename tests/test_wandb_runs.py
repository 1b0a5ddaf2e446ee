"""The frames of runs in Weights & Biases are those of the records on disk."""

from __future__ import annotations

import inspect
import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pytest
import wandb
from runs import configured, do
from test_faults import Broken
from wandb.apis.public import File
from wandb.apis.public import Run as PublicRun
from wandb_log import read_logs

from analysis import load
from analysis.frames import Frames, frames
from analysis.wandb_runs import ProjectError, project_entries
from harness.records.record import Record, append_row, write_record
from harness.trackers.wandb import WandbTracker

pytestmark = pytest.mark.long  # whole runs, or every composition

MEMBERS = ("runs", "layers", "blocks", "samples")


def diverge(folder: Path) -> None:
    """A run whose numbers are not finite, on disk and in W&B."""
    directory = folder / "diverged"
    directory.mkdir(parents=True)
    record = Record("diverged", "done", started="2026-01-01", finished="2026-01-02")
    record.summary = {"model": "tiny", "method": "rtn", "bits": 2, "group_size": 64, "alpha": 1.0}
    record.metrics = {"perplexity/text": math.inf, "error/growth": math.nan}
    record.samples = {"loss/text": [1.5, math.inf, 0.1 + 0.2]}
    layer = {"name": "b.0.q", "block": 0, "role": "q", "rows": 2, "columns": 2, "alpha": 1.0}
    layer |= dict.fromkeys(("rounding_error", "local_error", "total_error"), math.nan)
    layer |= {"signal": math.inf, "bits_per_weight": 2.5, "traces": {"loss": [3.0, math.inf]}}
    block = {"block": 0, "name": "b.0", "relative_error": math.inf}
    tracker = WandbTracker()
    tracker.start(record, directory)
    append_row(directory / "layers.jsonl", layer)
    append_row(directory / "blocks.jsonl", block)
    tracker.layer(layer)
    tracker.block(block)
    write_record(directory, record)
    tracker.finish(record)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of results with its mirror: a run, its baseline, a failed one and a diverged one."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEP_BENCH_CACHE", str(folder / "cache"))
        words = ("tracker=wandb", "method=rtn", "calibration.holdout=2")
        do(configured(tiny_folder, folder, *words))
        with pytest.raises(ArithmeticError):
            do(replace(configured(tiny_folder, folder, *words, "bits=4"), method=Broken()))
    diverge(folder / "local")
    assert len(read_logs(folder / "local" / "wandb")) == 4
    return folder / "local"


def assert_equal(one: Frames, other: Frames) -> None:
    for name in MEMBERS:
        assert len(getattr(one, name))
        left, right = plain(getattr(one, name)), plain(getattr(other, name))
        pd.testing.assert_frame_equal(left, right, check_exact=True)


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Dictionaries as text with every digit, since pandas can't compare those with arrays or NaN."""
    dictionaries = [key for key in frame if any(isinstance(one, dict) for one in frame[key])]
    text = {key: frame[key].map(lambda one: json.dumps(one, default=list)) for key in dictionaries}
    return frame.assign(**text)


def test_offline_runs_give_the_frames_of_the_records(folder: Path) -> None:
    on_disk = load(folder)
    assert len(on_disk.runs) == 4 and set(on_disk.runs["status"]) == {"done", "failed"}
    assert_equal(load(folder / "wandb"), on_disk)
    diverged = on_disk.runs.set_index("run").loc["diverged"]
    assert diverged["perplexity/text"] == math.inf and math.isnan(diverged["error/growth"])


def test_one_offline_run_can_be_loaded_alone(folder: Path) -> None:
    (run,) = [log.folder for log in read_logs(folder / "wandb").values() if log.name == "diverged"]
    assert list(load(run).runs["run"]) == ["diverged"]


def test_the_mirror_is_not_read_as_further_records(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(folder.parent)
    assert caplog.text == ""


def test_foreign_unfinished_and_damaged_runs_are_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "wandb"
    shutil.copytree(folder / "wandb", copy, ignore=shutil.ignore_patterns("*.log", "latest-run"))
    foreign, unfinished, damaged, _ = sorted(copy.glob("offline-run-*"))
    shutil.rmtree(foreign / "files" / "record")
    (unfinished / "files" / "record" / "record.json").unlink()
    (damaged / "files" / "record" / "layers.jsonl").write_text("{")
    assert len(load(copy).runs) == 1
    lines = caplog.text.splitlines()
    assert len(lines) == 3
    for run, line, said in zip(
        (foreign, unfinished, damaged),
        lines,
        ("another program", "unfinished", "record.json: layers.jsonl"),
        strict=True,
    ):
        assert run.name in line and said in line


@dataclass
class FakeFile:
    name: str
    source: Path
    size: int
    downloads: list[str]

    def download(self, root: str = ".", replace: bool = False) -> io.TextIOWrapper:
        self.downloads.append(self.name)
        target = Path(root) / self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.source, target)
        return target.open()


@dataclass
class FakeRun:
    folder: Path
    downloads: list[str]
    state: str = "finished"
    created_at: str = "2026-01-01T00:00:00Z"
    heartbeat_at: str | None = "2026-01-01T00:00:09Z"

    @property
    def id(self) -> str:
        return self.folder.name.rsplit("-", 1)[-1]

    def files(self, names: list[str] | None = None) -> Iterator[FakeFile]:
        for name in names or ():
            source = self.folder / "files" / name
            size = source.stat().st_size if source.exists() else 0
            yield FakeFile(name, source, size, self.downloads)


@dataclass
class FakeApi:
    """W&B's public API as far as it is used, over a folder of offline runs."""

    folder: Path
    error: Exception | None = None
    downloads: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)

    def runs(self, path: str, *, per_page: int) -> Iterator[FakeRun]:
        if self.error:
            raise self.error
        assert path == "team/project"
        for run in sorted(self.folder.glob("offline-run-*"), reverse=True):
            yield FakeRun(run, self.downloads, **self.changed)


def test_the_fake_has_the_interface_of_the_real_one() -> None:
    for real, fake in (
        (wandb.Api.runs, FakeApi.runs),
        (PublicRun.files, FakeRun.files),
        (File.download, FakeFile.download),
    ):
        assert (
            inspect.signature(fake).parameters.keys() <= inspect.signature(real).parameters.keys()
        )
    attributes = {
        "id": "1",
        "name": "x",
        "heartbeatAt": "a",
        "createdAt": "b",
        "state": "finished",
    }
    run = PublicRun(None, "team", "project", "x", attributes)  # type: ignore[arg-type]
    assert (run.id, run.heartbeat_at, run.created_at, run.state) == ("x", "a", "b", "finished")


def test_a_project_gives_the_frames_of_the_records_and_is_fetched_once(folder: Path) -> None:
    api = FakeApi(folder / "wandb")
    assert_equal(frames(project_entries("team/project", api)), load(folder))
    fetched = len(api.downloads)
    assert fetched == 4 + 2 + 2 + 3  # a run, its baseline, a failed one, one without config.yaml
    assert_equal(frames(project_entries("team/project", api)), load(folder))
    assert len(api.downloads) == fetched
    api.changed = {"heartbeat_at": "2026-02-02T00:00:00Z"}
    assert_equal(frames(project_entries("team/project", api)), load(folder))
    assert len(api.downloads) == 2 * fetched


def test_a_run_that_is_still_going_is_named_and_read_when_it_is_done(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "offline-run-1-abc"
    shutil.copytree(next((folder / "wandb").glob("offline-run-*")) / "files", run / "files")
    (run / "files" / "record" / "record.json").rename(tmp_path / "later")
    api = FakeApi(tmp_path, changed={"state": "running"})
    assert list(project_entries("team/project", api)) == []
    assert "team/project/abc: unfinished" in caplog.text
    (tmp_path / "later").rename(run / "files" / "record" / "record.json")
    api.changed = {}
    assert len(list(project_entries("team/project", api))) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            wandb.errors.UsageError("No API key configured. Use\n..."),
            "wandb login, or set WANDB_API",
        ),
        (wandb.errors.AuthenticationError("Failed to verify"), "the key is right"),
        (wandb.errors.CommError("connection refused"), "server can be reached"),
        (ValueError("Could not find project project"), "project is there"),
    ],
)
def test_what_is_wrong_with_a_project_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(ProjectError) as caught:
        list(project_entries("team/project", FakeApi(Path(), error)))
    assert str(caught.value).startswith("wandb:team/project: ")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["project", "team/", "a/b/c", "../up", ""])
def test_a_project_needs_its_entity(name: str) -> None:
    with pytest.raises(ProjectError, match="want wandb:entity/project"):
        load(f"wandb:{name}")


def test_without_an_account_the_command_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "wandb:team/project"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "PATH": ""},
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: wandb:team/project: No API key")
    assert "wandb login" in done.stderr
