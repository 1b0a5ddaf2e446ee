"""What the cache loses costs work; it never stops a run nor changes a figure."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from processes import run
from runs import configured, do, words
from test_resume import contents

from harness import pipeline
from harness.evaluate import divergence
from harness.records.cache import Cache
from harness.records.record import Record
from harness.records.recorder import Recorder
from harness.settings.config import Config

pytestmark = pytest.mark.long

SHARED = "cache.reference=true"


def computed(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "computed"


@pytest.fixture(scope="module")
def before(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """A folder with a cache and the run that has filled it; and another run that has shared nothing."""
    folder = tmp_path_factory.mktemp("before")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("QEP_BENCH_CACHE", str(folder / "cache"))
        alone = configured(tiny_folder, folder / "alone", "method=rtn", "cache.reference=false")
        record = do(alone)
        do(configured(tiny_folder, folder / "first", SHARED))
    return folder, record


@pytest.fixture
def expected(before: tuple[Path, Record], tmp_path: Path) -> Record:
    """The record of the run that has shared nothing; the folder is copied to ``tmp_path``."""
    shutil.copytree(before[0], tmp_path, dirs_exist_ok=True)
    return before[1]


def flipped(content: bytes) -> bytes:
    """One bit of every 4 KiB is another one."""
    changed = bytearray(content)
    for at in range(len(changed) % 4096 // 2, len(changed), 4096):
        changed[at] ^= 16
    return bytes(changed)


HARMS: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]),
    "random": lambda path: path.write_bytes(bytes(range(256)) * (path.stat().st_size // 256)),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "an entry that is a file": lambda path: (
        shutil.rmtree(path.parent),
        path.parent.write_text("no entry"),
    ),
}


@pytest.mark.parametrize("file", ["outputs-*/00000.bin", "head-inputs-*/*.bin"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_entry_is_dropped_said_and_computed_again(
    file: str,
    harm: str,
    expected: Record,
    tiny_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (path,) = computed(tmp_path).glob(file)
    HARMS[harm](path)
    config = configured(tiny_folder, tmp_path / "first", "method=rtn", SHARED)
    record = do(config)
    assert record.status == "done" and record.metrics == expected.metrics
    told = [line for line in caplog.messages if "lost an entry" in line]
    if harm != "an entry that is a file":  # that is none
        assert len(told) == 1 and "\n" not in told[0] and path.parent.name in told[0]
    kept = [one.is_dir() for one in computed(tmp_path).glob("*-*")]
    assert kept == [True] * len(kept), "what is damaged is gone, or made anew"


def test_states_that_are_lost_while_a_run_is_under_way_are_measured_again(
    expected: Record, tiny_folder: Path, tmp_path: Path
) -> None:
    layer = Recorder.layer

    def vanishing(recorder: Recorder, row: dict[str, object]) -> None:
        shutil.rmtree(computed(tmp_path), ignore_errors=True)
        layer(recorder, row)

    with patch.object(Recorder, "layer", vanishing):
        record = do(configured(tiny_folder, tmp_path / "first", "method=rtn", SHARED))
    assert record.metrics == expected.metrics


def test_a_damaged_window_raises_where_it_is_read(expected: Record, tmp_path: Path) -> None:
    """Between the first look and the evaluation."""
    (path,) = computed(tmp_path).glob("head-inputs-*/*.bin")
    states = divergence.States.kept(path.parent)
    HARMS["flipped"](path)
    with pytest.raises(divergence.ReferenceMissing, match="damaged at window 0"):
        states[0:1]


@pytest.mark.parametrize("harm", ["a file in its place", "no locks"])
def test_a_folder_that_takes_nothing_is_done_without(
    harm: str,
    expected: Record,
    tiny_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if harm == "no locks":

        def refuse(file: object, kind: int) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)
    else:
        shutil.rmtree(computed(tmp_path))
        computed(tmp_path).write_text("")
    config = configured(tiny_folder, tmp_path / "first", "method=rtn", SHARED)
    assert do(config).metrics == expected.metrics
    told = [line for line in caplog.messages if "going on without it" in line]
    assert len(set(told)) == 1 and str(computed(tmp_path)) in told[0]


def test_a_full_disk_is_found_before_the_start_and_costs_no_run(
    expected: Record, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEP_BENCH_CACHE", str(tmp_path / "full"))
    ended = run(
        words(tiny_folder, tmp_path / "results", "method=rtn", SHARED), tmp_path, full="computed"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    (at,) = [i for i, line in enumerate(lines) if "No space left" in line]
    assert "going on without it" in lines[at]
    assert at < next(i for i, line in enumerate(lines) if line.startswith("■"))
    assert contents(tmp_path / "results") == contents(tmp_path / "alone")


def test_a_run_opens_one_cache(tiny_folder: Path, tmp_path: Path) -> None:
    """What the disk does not take is remembered from the full-precision run to the run that needs it."""
    opened: list[Cache] = []

    def counted(config: Config) -> Cache:
        opened.append(Cache(Path("/proc/no/folder")))
        return opened[-1]

    with patch.object(pipeline, "computed", counted):
        do(configured(tiny_folder, tmp_path, "method=rtn"))
    assert len(opened) == 1 and not opened[0].memory
