"""A dry run: the same work as the record will have, nothing written, nothing started."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import rich.console
import torch
from families import FAMILIES, build
from processes import run
from runs import configured, do, words
from transformers import AutoModelForCausalLM

from harness.command.checks import planned
from harness.command.console import Console
from harness.command.estimate import Estimator, dry_run, state_of
from harness.command.measure import product_speed
from harness.command.on_device import PROCESS, duration
from harness.records.record import Record, write_record
from harness.walk.architecture import plan


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [
        ("method=gptq", "calibration.holdout=2"),
        ("method=quantease", "method.iterations=2", "qep.alpha=auto", "calibration.holdout=2"),
        ("method=awq", "qep.alpha=0", "eval.divergence=false"),
        ("method=awq", "calibration@calibration.awq=text", "calibration.awq.path=TEXT",
         "calibration.awq.windows=6", "calibration.awq.length=24"),
        ("method=gptaq", "quantize.blocks=1:", "quantize.exclude=['*.o_proj']"),
        ("method=rtn", "qep.statistics=reference"),
        ("method=gptq", "model.dtype=float64"),
        ("transform=[awq,hadamard]", "range=mse", "refit=round", "qep.target=residual"),
        ("method=rtn", "bits=auto", "budget=4.7",
         "+overrides={*.k_proj: {bits: 4}}"),
        ("method=qronos", "qep.target=residual", "qep.alpha=auto", "calibration.holdout=2"),
        ("method=quip", "quantize.blocks=:1"),
        ("method=none",),
        ("method=rtn", "eval.tasks=[TASK]"),
    ],
    ids=lambda more: more[0],
)  # fmt: skip
def test_its_work_is_the_record_s(
    more: tuple[str, ...], tiny_folder: Path, tmp_path: Path
) -> None:
    task = tmp_path / "colours.jsonl"
    row = {"query": "Which colour?", "choices": ["red", "blue green"], "gold": 0}
    task.write_text(
        "".join(json.dumps(row | {"query": f"{i} {row['query']}"}) + "\n" for i in range(9))
    )
    text = str(tiny_folder / "text.txt")
    more = tuple(word.replace("TASK", str(task)).replace("TEXT", text) for word in more)
    config = configured(tiny_folder, tmp_path, *more)
    estimate = Estimator()(config)
    record = do(config)
    assert estimate.flops == record.flops
    assert estimate.work > 1e6
    assert record.peak_memory / 3 < estimate.memory < 3 * record.peak_memory


def test_of_a_streamed_model_two_blocks_count(tiny_folder: Path, tmp_path: Path) -> None:
    whole, streamed = (
        Estimator()(configured(tiny_folder, tmp_path, f"model.streaming={value}"))
        for value in ("false", "true")
    )
    blocks = build("llama").model.layers
    one = 4 * sum(parameter.numel() for parameter in blocks[0].parameters())
    assert whole.memory - streamed.memory == pytest.approx((len(blocks) - 2) * one)
    assert whole.flops == streamed.flops


def test_every_lane_of_the_walk_has_sums_of_its_own(tiny_folder: Path, tmp_path: Path) -> None:
    """Four batches calibrate and two are held out; down_proj takes the most."""
    more = ("batch_tokens=16", "eval.batch_tokens=1", "calibration.holdout=2", "qep.skip=[]")
    single, many = (
        configured(tiny_folder, tmp_path, *more, f"threads={threads}") for threads in (1, 64)
    )
    rows, columns = next(
        one.shape for one in planned(single).linears if one.name.endswith("down_proj")
    )
    sums = 2 * 2 * columns**2  # H and C
    work = sums + columns**2 + 3.25 * rows * columns
    found = Estimator()(many).memory - Estimator()(single).memory
    assert found == 4 * (6 * sums - work)


def test_every_number_of_a_float64_run_takes_twice_the_room(
    tiny_folder: Path, tmp_path: Path
) -> None:
    single, double = (
        Estimator()(configured(tiny_folder, tmp_path, f"model.dtype=float{bits}")).memory - PROCESS
        for bits in (32, 64)
    )
    assert double == 2 * single


def test_trying_bits_counts_what_the_method_s_statistics_take(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """GPTAQ of strength 0 rounds as GPTQ does, and sums C all the same."""
    budget = ("bits=auto", "budget=4.7")
    plain, crossed = (
        configured(tiny_folder, tmp_path, *more, *budget)
        for more in (("method=gptq",), ("method=gptaq", "method.strength=0"))
    )
    taken = [Estimator()(one).flops["allocate"] for one in (plain, crossed)]
    columns = [one.linears[0].shape[1] for one in planned(plain).stages]
    assert taken[1] - taken[0] == 2 * 4 * 16 * sum(c**2 for c in columns)  # 4 windows of 16 tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_weights_has_the_plan_of_the_real_one(family: str) -> None:
    model = build(family)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(model.config)
    real = plan(model)
    guessed = plan(skeleton)
    assert real.overwritten == guessed.overwritten
    for one, other in zip(real.stages, guessed.stages, strict=True):
        assert (one.index, one.block, one.source) == (other.index, other.block, other.source)
        assert [linear.name for linear in one.linears] == [linear.name for linear in other.linears]
        assert [linear.shape for linear in one.linears] == [
            linear.shape for linear in other.linears
        ]


def listed(folder: Path, results: Path, *more: str) -> list[str]:
    text = io.StringIO()
    console = Console(rich.console.Console(file=text, soft_wrap=True))
    dry_run([configured(folder, results, *one.split()) for one in more], console)
    return text.getvalue().splitlines()


def test_it_lists_every_run_with_its_state_and_a_total(tiny_folder: Path, tmp_path: Path) -> None:
    do(configured(tiny_folder, tmp_path, "method=rtn"))
    failed = configured(tiny_folder, tmp_path, "method=rtn", "bits=2")
    failed.directory.mkdir()
    write_record(failed.directory, Record(failed.run_id, "failed"))
    configured(tiny_folder, tmp_path, "method=gptq").directory.mkdir()
    lines = listed(
        tiny_folder, tmp_path,
        "method=rtn", "method=rtn bits=2", "method=gptq", "method=gptq bits=4",
        "method=rtn bits=2",
    )  # fmt: skip
    runs = [line for line in lines if str(tmp_path) in line]
    assert len(runs) == 5  # the baseline, and one run that is asked for twice
    for line, name, state in zip(
        runs,
        ("tiny-none", "tiny-rtn-w3", "tiny-rtn-w2", "tiny-gptq-w3", "tiny-gptq-w4"),
        ("done  ", "done  ", "to do, failed before", "to do, begun before", "to do  "),
        strict=True,
    ):
        assert name in line and state in line
        assert ("–" in line) == state.startswith("done")
    assert any(line.startswith("3 of 5 to do") for line in lines)
    assert "estimates" in lines[-1] and "GFLOP/s" in lines[-1]


def test_it_writes_nothing_and_a_bad_job_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    sweep = ("-m", "dry_run=true", "method=rtn,gptq", "qep.alpha=0,1")
    ended = run(words(tiny_folder, results, *sweep), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(str(results)) == 5
    assert not results.exists()
    ended = run(words(tiny_folder, results, *sweep, "calibration.windows=100000"), tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: calibration") and ended.stderr.count("\n") == 1
    assert not results.exists()


def test_it_is_no_part_of_the_identity(tiny_folder: Path, tmp_path: Path) -> None:
    plain = configured(tiny_folder, tmp_path)
    for word in ("dry_run=true", "stop.error=1", "checkpoint.every=3", "debug=true",
                 "model.streaming=true"):  # fmt: skip
        assert configured(tiny_folder, tmp_path, word).run_id == plain.run_id
    assert state_of(plain) == "to do"


def test_the_machine_is_measured_in_a_moment() -> None:
    first = product_speed("cpu", 1, 512, torch.float32)
    assert 1e8 < first < 1e14
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.21, "4.2 s"), (600, "10 min"), (7200, "2.0 h"), (1e6, "277.8 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
