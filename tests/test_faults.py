"""What goes wrong: what a failure leaves, what is told, and what the next start does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from processes import run, start
from runs import CONF, ROOT, command, configured, do, words

from harness import pipeline
from harness.command import cli
from harness.methods.rtn import RTN
from harness.numerics.cholesky import IndefiniteError, damped_cholesky
from harness.numerics.finite import NonFiniteError
from harness.records.record import NewerError, Record, read_record, read_rows, write_record
from harness.settings.config import Config

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Broken(RTN):
    def quantize_rows(self, weight, statistics, spec):  # type: ignore[no-untyped-def]
        raise ArithmeticError("the third wheel came off")


def test_a_failure_is_a_record_and_the_next_start_redoes_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = configured(tiny_folder, tmp_path, "method=rtn")
    with pytest.raises(ArithmeticError):
        do(replace(config, method=Broken()))
    failed = read_record(replace(config, method=Broken()).directory)
    assert failed.status == "failed"
    assert failed.error is not None and "third wheel" in failed.error["traceback"]
    assert do(config).status == "done"


def test_an_indefinite_hessian_names_the_linear(tiny_folder: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Indefinite(RTN):
        def quantize_rows(self, weight, statistics, spec):  # type: ignore[no-untyped-def]
            damped_cholesky(-statistics.hessian, 0.01)

    config = replace(configured(tiny_folder, tmp_path), method=Indefinite())
    with pytest.raises(
        IndefiniteError, match=r"model\.layers\.0\.self_attn\.q_proj: .*indefinite"
    ):
        do(config)
    assert read_record(config.directory).status == "failed"


def test_weights_that_are_no_numbers_are_named_before_they_are_quantised(
    tiny_folder: Path, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj"
    spoiled = poison(tiny_folder, tmp_path, f"{name}.weight", float("nan"))
    config = configured(spoiled, tmp_path, "method=rtn", "baseline=false", "eval.divergence=false")
    with pytest.raises(NonFiniteError, match=rf"{name}\.weight in float32 is not finite: 1 of "):
        do(config)
    assert read_record(config.directory).status == "failed"


def test_an_interrupted_run_leaves_no_record(tiny_folder: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Interrupted(RTN):
        def quantize_rows(self, weight, statistics, spec):  # type: ignore[no-untyped-def]
            raise KeyboardInterrupt

    config = replace(configured(tiny_folder, tmp_path, "method=rtn"), method=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        do(config)
    assert "record.json" not in os.listdir(config.directory)


def test_a_group_size_that_does_not_divide_names_the_linear(
    tiny_folder: Path, tmp_path: Path
) -> None:
    done = run(words(tiny_folder, tmp_path / "results", "group_size=20"), tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(
        r"error: group_size=20: does not divide the 32 input columns.*\n", done.stderr
    )


def test_a_model_that_is_not_there_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [*words(tiny_folder, tmp_path / "results"), "model.path=/nowhere"]
    done = run(arguments, tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: model.path='/nowhere': no such directory\n"


def test_too_few_calibration_tokens_are_told_before_the_model_loads(
    tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = words(tiny_folder, tmp_path / "results", "calibration.windows=100000")
    done = run(arguments, tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "calibration" in done.stderr
    assert "■" not in done.stdout


def test_a_multirun_prints_one_table_and_goes_on_after_a_failure(
    tiny_folder: Path, tmp_path: Path
) -> None:
    more = ("-m", "method=rtn,gptq", "qep.alpha=0,1", "calibration.holdout=2")
    poisoned = poison(tiny_folder, tmp_path)
    done = command(tiny_folder, tmp_path, *more)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    table = done.stdout[done.stdout.index("method") :]
    assert table.count("gptq") == 2 and "full precision" in table and " *" in table
    failing = run(words(poisoned, tmp_path / "results", *more), tmp_path)
    assert failing.returncode == 1
    assert "not finite" in failing.stdout
    assert "4 jobs: 0 done, 0 skipped, 4 failed, 0 stopped" in failing.stdout


def poison(
    folder: Path,
    tmp_path: Path,
    parameter: str = "model.layers.1.input_layernorm.weight",
    value: float = float("inf"),
) -> Path:
    """The tiny folder with a checkpoint in which one number is no number, and activations overflow."""
    from transformers import AutoModelForCausalLM

    other = tmp_path / "poisoned"
    other.mkdir()
    (other / "text.txt").write_text((folder / "text.txt").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    model.get_parameter(parameter).data.view(-1)[0] = value
    model.save_pretrained(other / "tiny")
    for path in (folder / "tiny").glob("token*"):
        (other / "tiny" / path.name).write_text(path.read_text())
    return other


def test_a_killed_run_is_redone_and_ends_equal(tiny_folder: Path, tmp_path: Path) -> None:
    expected = do(configured(tiny_folder, tmp_path / "whole"))
    process = subprocess.Popen(
        [sys.executable, "run.py", *words(tiny_folder, tmp_path / "killed")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    directory = configured(tiny_folder, tmp_path / "killed").directory
    while not (directory / "layers.jsonl").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    record = do(configured(tiny_folder, tmp_path / "killed"))
    assert record.metrics == expected.metrics
    assert len(read_rows(directory / "layers.jsonl")) == 21
    left = [name for name in os.listdir(tmp_path / "killed" / "local") if name.startswith(".")]
    assert [name for name in left if name != ".hydra"] == []


def test_a_sweep_goes_on_after_a_full_disk(tiny_folder: Path, tmp_path: Path) -> None:
    more = ("-m", "method=rtn,gptq", "bits=2,3")
    ended = run(words(tiny_folder, tmp_path / "results", *more), tmp_path, full="rtn-w2")
    assert ended.returncode == 1
    assert ended.stderr == ""
    told = [line for line in ended.stdout.splitlines() if line.startswith("✗")]
    assert (
        len(told) == 1 and "No space left" in told[0] and "no record could be written" in told[0]
    )
    assert "4 jobs: 3 done, 0 skipped, 1 failed, 0 stopped" in ended.stdout
    again = run(words(tiny_folder, tmp_path / "results", *more), tmp_path)
    assert again.returncode == 0
    assert "4 jobs: 1 done, 3 skipped, 0 failed, 0 stopped" in again.stdout


def test_an_interrupted_sweep_is_told_in_one_line_and_goes_on(
    tiny_folder: Path, tmp_path: Path
) -> None:
    # So many runs that the sweep is not over before a busy machine has looked.
    sweep = ("-m", "method=rtn,gptq", "bits=2,3,4,5,6")
    arguments = words(tiny_folder, tmp_path / "results", *sweep)
    started = start(arguments, tmp_path)
    while not list((tmp_path / "results").glob("local/*rtn*/record.json")):
        time.sleep(0.005)
    assert started.process.pid is not None
    os.kill(started.process.pid, signal.SIGINT)
    ended = started.wait()
    assert ended.returncode == 130, ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert re.fullmatch(r"interrupted: [1-9] of 10 runs are finished; the same command .*", last)
    assert ended.stderr == ""
    assert run(arguments, tmp_path).returncode == 0


def test_what_fails_when_a_job_is_built_is_that_job_s_failure(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A file of the configuration or of the model goes away while the sweep runs."""
    calls = []
    run_one = pipeline.run

    def vanishing(config: Config, *rest: Any, **how: Any) -> Record:
        calls.append(config.run_id)
        if len(calls) == 1:
            raise FileNotFoundError("config.json has gone")
        return run_one(config, *rest, **how)

    monkeypatch.setattr(pipeline, "run", vanishing)
    code = cli.main(print, CONF, words(tiny_folder, tmp_path, "-m", "method=rtn,gptq"))
    assert code == 1
    assert "2 jobs: 1 done, 0 skipped, 1 failed, 0 stopped" in capsys.readouterr().out


def test_a_failed_baseline_is_a_failed_record_of_every_run_that_needs_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    poisoned = poison(tiny_folder, tmp_path)
    config = configured(poisoned, tmp_path, "method=rtn")
    with pytest.raises(ArithmeticError, match="not finite"):
        do(config)
    for one in (config, config.full_precision()):
        record = read_record(one.directory)
        assert record.status == "failed"
        assert record.error is not None and "not finite" in record.error["traceback"]


@pytest.mark.parametrize("which", ["the run", "its full-precision run"])
def test_a_record_of_a_later_version_is_refused_and_left_alone(
    which: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words(tiny_folder, tmp_path, "method=rtn", "force=true")
    (config,) = cli.plan_jobs(CONF, arguments)
    directory = (config if which == "the run" else config.full_precision()).directory
    directory.mkdir(parents=True)
    write_record(directory, Record(directory.name, "done", schema=99))
    before = (directory / "record.json").read_bytes()
    assert cli.main(print, CONF, arguments) == 2
    said = capsys.readouterr()
    assert re.fullmatch(
        r"error: .*record\.json: schema 99, this version reads up to 3 .*; set=NAME .*\n", said.err
    )
    assert "■" not in said.out
    with pytest.raises(NewerError):
        do(config)
    assert (directory / "record.json").read_bytes() == before
    assert os.listdir(directory) == ["record.json"]
