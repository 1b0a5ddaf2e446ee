"""Whatever is done to a file that runs have left: the next start ends with the figures of all of them.

The folder has two finished runs and their full-precision run, one killed run with a checkpoint, the
mirrors of all, and a cache.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from runs import CONF, configured, do, words
from test_checkpoints import killed_at
from test_contents import age_of_the_youngest
from test_resume import contents

from harness.command import cli
from harness.inputs import contents as inputs
from harness.records.record import CHECKPOINT

pytestmark = pytest.mark.long

SETTINGS = ("tracker=wandb", "checkpoint.every=1", "cache.reference=true")
SWEEP = ("-m", "method=gptq", "bits=2,3,4", *SETTINGS)
RECORD, SIDE, CACHE, KEPT, MIRROR = "record", "side file", "cache", "checkpoint", "mirror"
TARGETS = {
    "results/local/*-gptq-w3-*/record.json": RECORD,
    "results/local/*-none-*/record.json": RECORD,
    "results/local/*-gptq-w3-*/layers.jsonl": SIDE,
    "results/local/*-gptq-w3-*/blocks.jsonl": SIDE,
    "results/local/*-gptq-w3-*/config.yaml": SIDE,
    "results/local/*-gptq-w3-*": SIDE,
    "results/local/*-gptq-w2-*/layers.jsonl": SIDE,
    f"results/local/*-gptq-w2-*/{CHECKPOINT}/00000-*": KEPT,
    f"results/local/*-gptq-w2-*/{CHECKPOINT}": KEPT,
    "cache/computed/outputs-*/00000.bin": CACHE,
    "cache/computed/outputs-*/.used": CACHE,
    "cache/computed/outputs-*": CACHE,
    "cache/computed/head-inputs-*/states.bin": CACHE,
    "cache/computed/head-inputs-*/about.json": CACHE,
    "cache/computed/.lock": CACHE,
    "cache/computed": CACHE,
    "cache/hashes/*.json": CACHE,
    "results/local/wandb/offline-run-*/run-*.wandb": MIRROR,
    "results/local/wandb/offline-run-*/files/record/record.json": MIRROR,
    "results/local/wandb": MIRROR,
}


def truncated(path: Path, at: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: at % max(1, len(content))])


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    for place in range(at % 4096 % max(1, len(content)), len(content), 4096):
        content[place] ^= 1 << at % 8
    path.write_bytes(content)


def deleted(path: Path, at: int) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def replaced(path: Path, at: int) -> None:
    """A file by a folder with something in it, a folder by a file."""
    folder = path.is_dir()
    deleted(path, at)
    if folder:
        path.write_text("no folder")
    else:
        path.mkdir()
        (path / "in the way").write_text("")


def protected(path: Path, at: int) -> None:
    path.chmod(0o500 if path.is_dir() else 0o400)


FILE = {one.__name__: one for one in (truncated, flipped, deleted, replaced, protected)}
FOLDER = {one.__name__: one for one in (deleted, replaced, protected)}


@pytest.fixture(scope="module")
def before(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    inputs._remembered.cache_clear()  # what this process remembers it does not write
    # Hashes of files that are younger are not remembered.
    time.sleep(max(0.0, inputs.RACY / 1e9 - age_of_the_youngest(tiny_folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEP_BENCH_CACHE", str(folder / "cache"))
        for bits in ("3", "4"):
            do(configured(tiny_folder, folder / "results", f"bits={bits}", *SETTINGS))
        with killed_at(15):
            do(configured(tiny_folder, folder / "results", "bits=2", *SETTINGS))
    return folder


def swept(tiny_folder: Path, folder: Path) -> tuple[int, str]:
    """The exit code of the sweep in a copy of ``before``, and all that it has printed."""
    inputs._remembered.cache_clear()
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.setenv("QEP_BENCH_CACHE", str(folder / "cache"))
        code = cli.main(print, CONF, words(tiny_folder, folder / "results", *SWEEP))
    return code, said.getvalue()


@pytest.fixture(scope="module")
def expected(tiny_folder: Path, before: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The records of the sweep where nothing is damaged."""
    folder = tmp_path_factory.mktemp("whole") / "copy"
    shutil.copytree(before, folder, symlinks=True)
    code, said = swept(tiny_folder, folder)
    assert code == 0, said
    found = contents(folder / "results")
    assert len(found) == 4
    return found


def damaged(path: Path, harm: str, at: int) -> bool:
    """Damages a file or folder; returns whether it is another one now."""
    made: dict[str, Callable[[Path, int], None]] = FOLDER if path.is_dir() else FILE
    old = path.read_bytes() if path.is_file() else None
    made[harm](path, at)
    return old is None or not path.is_file() or path.read_bytes() != old


def check(tiny_folder: Path, before: Path, expected: Any, target: str, harm: str, at: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(before, folder, symlinks=True)
        path = sorted(folder.glob(target))[0]
        untouched = {
            one: one.read_bytes()
            for one in folder.glob("results/local/*/record.json")
            if path not in (one, *one.parents)
            and path.parent != one.parent
            # A cache that has lost the full-precision outputs has them measured again.
            and not (TARGETS[target] == CACHE and "-none-" in str(one))
        }
        changed = damaged(path, harm, at)
        code, said = swept(tiny_folder, folder)
        assert code == 0 and "Traceback" not in said, said
        assert contents(folder / "results") == expected
        assert {one: one.read_bytes() for one in untouched} == untouched
        kind = TARGETS[target]
        if kind in (RECORD, SIDE) and path.suffix in (".json", ".jsonl") and "w2" not in target:
            named = [line for line in said.splitlines() if "the run is made again" in line]
            gone = path.name == "record.json" and harm == "deleted"
            assert len(named) == (harm != "protected" and changed and not gone), said
        if target.endswith("00000-*"):
            left_out = "what it held is done again" in said
            assert left_out == (harm not in ("protected", "deleted") and changed), said


CASES = [
    (target, harm)
    for target in TARGETS
    for harm in (
        FOLDER
        if target.endswith(("computed", "-*", "wandb", CHECKPOINT)) and "00000" not in target
        else FILE
    )
]
FEW = [
    ("results/local/*-gptq-w3-*/record.json", "flipped"),
    ("results/local/*-none-*/record.json", "replaced"),
    ("results/local/*-gptq-w3-*/blocks.jsonl", "truncated"),
    (f"results/local/*-gptq-w2-*/{CHECKPOINT}/00000-*", "flipped"),
    ("cache/computed/outputs-*/.used", "replaced"),
    ("cache/hashes/*.json", "flipped"),
]


@pytest.mark.parametrize(("target", "harm"), FEW)
def test_a_damaged_file_costs_its_run_and_no_other(
    target: str, harm: str, tiny_folder: Path, before: Path, expected: Any
) -> None:
    check(tiny_folder, before, expected, target, harm, 1234)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "harm"), CASES)
def test_whatever_is_damaged_and_wherever(
    target: str, harm: str, tiny_folder: Path, before: Path, expected: Any
) -> None:
    """Each at places that hypothesis draws."""

    @settings(
        max_examples=3 if harm in ("truncated", "flipped") else 1,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(at=st.integers(0, 10**6))
    def at_a_place(at: int) -> None:
        check(tiny_folder, before, expected, target, harm, at)

    at_a_place()


def test_the_folder_is_as_the_cases_want_it(before: Path) -> None:
    assert len(CASES) >= 60 and {TARGETS[one] for one, _ in CASES} == set(TARGETS.values())
    for target, _ in CASES:
        assert list(before.glob(target)), target
    assert os.listdir(before / "results") == ["local"]
