"""The program as a person meets it: at once, with help, installed, with members of their own."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from runs import CONF, ROOT, command, do, words

from harness.command.cli import plan_jobs
from harness.command.options import (
    CONFIG,
    composed,
    groups,
    members,
    note,
    of_member,
    options,
    overview,
)
from harness.command.programs import alone
from harness.records.record import read_record
from harness.settings.config import ConfigError

pytestmark = pytest.mark.long

RUN = [sys.executable, "run.py"]
MINE = """
from dataclasses import dataclass

from harness.methods.base import Quantized, RowMethod


@dataclass(frozen=True)
class Mine(RowMethod):
    def quantize_rows(self, weight, statistics, spec):
        grid = spec.fit(weight)
        codes = grid.quantize(weight)
        return Quantized(grid.dequantize(codes), codes, grid)
"""


def took(run: Callable[[], object]) -> float:
    """Seconds; where other work holds the processor up, the processor time of the processes run."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return min(time.monotonic() - start, spent)


def test_something_is_on_screen_within_a_second() -> None:
    def first_line() -> float:
        start = time.monotonic()
        with subprocess.Popen([*RUN, "bits=1"], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"qep-bench ")
            seconds = time.monotonic() - start
            process.kill()
        return seconds

    assert min(first_line() for _ in range(3)) < 1


def test_help_takes_less_than_a_second_and_loads_nothing() -> None:
    done: list[subprocess.CompletedProcess[str]] = []

    def run() -> None:
        done.append(
            subprocess.run([*RUN, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        )

    assert took(run) < 1
    for word in ("--config-dir", "-m ", "qep.alpha=0.5", "method.damping=0.01", "Exit codes"):
        assert word in done[0].stdout


@pytest.mark.slow  # a time, which other work on the machine stretches
def test_a_finished_sweep_of_18_cells_is_skipped_in_three_seconds(
    tiny_folder: Path, tmp_path: Path
) -> None:
    grid = ("-m", "method=rtn", "bits=2,3,4", "qep.alpha=0,0.5,1", "seed=0,1")
    for config in plan_jobs(CONF, words(tiny_folder, tmp_path, *grid)):
        do(config)
    again: list[subprocess.CompletedProcess[str]] = []
    seconds = [took(lambda: again.append(command(tiny_folder, tmp_path, *grid))) for _ in range(2)]
    assert min(seconds) < 3, seconds
    assert again[0].stdout.splitlines()[-1] == "18 jobs: 0 done, 18 skipped, 0 failed, 0 stopped"


def test_output_that_cannot_be_encoded_is_ascii(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = command(tiny_folder, tmp_path, "method=rtn", "baseline=false", "eval.divergence=false")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "# tiny - rtn - 3 bits per channel - QEP alpha 0.5" in done.stdout
    assert "\nok tiny-rtn" in done.stdout and "?" not in done.stdout


def test_sigterm_is_as_an_interrupt(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = words(tiny_folder, tmp_path, "-m", "method=rtn", "bits=2,3,4,5,6,7,8", "seed=0,1")
    process = subprocess.Popen([*RUN, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("✓"):
        assert process.poll() is None
    process.terminate()
    last = process.stdout.read().splitlines()[-1]
    assert process.wait() == 130
    assert last.startswith("interrupted: ") and last.endswith("goes on from here")


def flattened(node: object, prefix: str = "") -> dict[str, object]:
    """The options in a YAML's tree, as PyYAML reads it."""
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    kept = {
        key: one for key, one in node.items() if key not in ("defaults", "hydra", "evaluators")
    }
    found: dict[str, object] = {}
    for key, one in kept.items():
        if key != "_target_":
            found |= flattened(one, f"{prefix}{key}.")
    return found


@pytest.mark.parametrize("path", sorted(CONF.glob("**/*.yaml")), ids=lambda p: p.stem)
def test_help_reads_the_options_that_yaml_reads(path: Path) -> None:
    expected = flattened(yaml.safe_load(path.read_text(encoding="utf-8")))
    found = {key: yaml.safe_load(one.value) for key, one in options(path).items()}
    assert found == {key: one for key, one in expected.items() if key}


def test_every_member_and_every_option_has_a_meaning() -> None:
    common = options(CONF / CONFIG)
    assert [key for key, one in common.items() if not one.meaning] == []
    for group in groups([CONF]):
        known = members([CONF], group)
        assert [name for name, path in known.items() if not note(path)] == [], group
        if group in ("experiment", "hydra/launcher"):  # of whole names; of Hydra's plugins
            continue
        for name in known.keys() - {"own"}:
            found = of_member(known, name, group, common)
            assert len(found) == len(composed(known, known[name]))
            assert [key for key, one in found.items() if not one.meaning] == [], (group, name)


def test_help_shows_the_chosen_members_and_one_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "method").mkdir()
    text = "# Rounds as I like it.\n_target_: mine.Mine\nstrength: 2  # of the rounding\n"
    (tmp_path / "method" / "mine.yaml").write_text(text)
    assert overview(CONF, ["--config-dir", str(tmp_path), "method=mine", "eval=text"]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "* mine Rounds as I like it" in said
    assert "method.strength=2 of the rounding" in said
    assert "eval.path=??? the file or directory" in said
    assert not any(line.startswith("method.damping") for line in said)
    assert overview(CONF, ["method=mine"]) == 2
    assert "method=mine: allowed are awq" in capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel of this project holds, and the script that pip makes of it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("harness", "analysis", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('wheels')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = (source / "wheels").glob("*.whl")
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "qep-bench = harness.command.start:main" in archive.read(entry).decode()
    script = "import sys\nfrom harness.command.start import main\nsys.exit(main())\n"
    (site / "qep-bench").write_text(script)
    return site


def test_installed_it_runs_anywhere_with_a_method_of_one_s_own(
    installed: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "mine.yaml").write_text("_target_: mine.Mine\n")
    (tmp_path / "mine.py").write_text(MINE)

    grid = ("-m", "--config-dir", "own", "method=mine", "hydra/launcher=joblib", "workers=1")
    done = subprocess.run(
        [
            sys.executable, str(installed / "qep-bench"), *grid,
            *words(tiny_folder, Path("results"), "bits=3", "baseline=false", "eval.divergence=false"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = tmp_path.glob("results/local/*/record.json")
    record = read_record(path.parent)
    assert (record.status, record.summary["method"]) == ("done", "mine")
    assert record.command.startswith("qep-bench --config-dir own ")
    assert record.git_commit == ""


def test_an_own_folder_must_exist_and_hides_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config-dir nowhere: no such folder"):
        plan_jobs(CONF, ["--config-dir", "nowhere", "method=rtn"])
    with pytest.raises(ConfigError, match="--config-dir : no such folder"):
        plan_jobs(CONF, ["method=rtn", "--config-dir"])
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "rtn.yaml").write_text("_target_: mine.Mine\n")
    with pytest.raises(ConfigError, match="there is a method/rtn.yaml already; rename this one"):
        plan_jobs(CONF, [f"--config-dir={tmp_path}", "method=rtn"])


def test_the_command_of_a_record_names_no_place_of_the_machine() -> None:
    words = ["method=rtn", "results=/home/me/results", "set=a b"]
    assert alone("python run.py", words) == "python run.py method=rtn 'set=a b'"
    assert (
        alone("qep-bench", ["experiment=select", "results=x"]) == "qep-bench -m experiment=select"
    )
