"""The noise floor: repeats change the order of summation and nothing else, and their spread is recorded."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build
from hypothesis import given
from hypothesis import strategies as st
from runs import CONF, configured, do, words

from harness.command import cli
from harness.command.cli import plan_jobs
from harness.inputs.batches import split_windows
from harness.numerics.statistics import Statistics
from harness.records.noise import spread, update_noise
from harness.records.record import METRICS, Record, read_record, write_record
from harness.settings.config import Config, ConfigError
from harness.settings.noise import Noise
from harness.walk.architecture import plan
from harness.walk.walk import Moments, Walk

pytestmark = pytest.mark.long  # whole runs

QUICK = ("baseline=false", "eval.divergence=false", "calibration.windows=8", "batch_tokens=64")
QUICK += ("scales=float32",)  # those of float16 swallow what differs by rounding


def rows(ids: torch.Tensor) -> list[tuple[int, ...]]:
    return sorted(map(tuple, ids.tolist()))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 100), st.integers(0, 50))
def test_a_seed_only_permutes(windows: int, length: int, batch_tokens: int, seed: int) -> None:
    ids = torch.arange(windows * length).view(windows, length)
    found = split_windows(ids, batch_tokens, seed)
    assert rows(torch.cat(found)) == rows(ids)
    assert all(len(one) == 1 or one.numel() <= batch_tokens for one in found)
    if not seed:
        assert torch.equal(torch.cat(found), ids)
        assert len(found[0]) == min(windows, max(1, batch_tokens // length))


def test_seeds_change_the_order_and_the_size_of_batches() -> None:
    ids = torch.arange(32).view(16, 2)
    found = [split_windows(ids, 8, seed) for seed in range(20)]
    assert len({tuple(torch.cat(one).flatten().tolist()) for one in found}) == 20
    assert {len(one[0]) for one in found} == {1, 2, 3, 4}


def first_statistics(dtype: torch.dtype, seed: int) -> Statistics:
    """H and C of the last stage; on the way all weights shrink, which no rounding can turn."""
    model = build("llama").to(dtype)
    ids = torch.randint(4, 60, (12, 16), generator=torch.Generator().manual_seed(0))
    chosen = plan(model)
    with Walk(
        model, chosen, split_windows(ids, 64, seed), moments=lambda _: Moments(cross=True)
    ) as walk:
        for stage in walk:
            last = stage.statistics
            walk.advance({name: weight * 0.9 for name, weight in stage.weights.items()})
    return last


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_the_sums_are_equal_but_for_rounding(dtype: torch.dtype, bound: float) -> None:
    plain, *others = (first_statistics(dtype, seed) for seed in range(4))
    for other in others:
        assert other.tokens == plain.tokens
        for name in ("hessian", "cross"):
            one, two = getattr(plain, name), getattr(other, name)
            assert ((one - two).norm() / one.norm()).item() < bound
    assert any(not torch.equal(plain.hessian, other.hessian) for other in others)


def repeated(folder: Path, results: Path, repeats: int, *more: str) -> list[Config]:
    """The configurations of a run and its repeats, done from the command line; that of seed 0 first."""
    line = words(folder, results, *QUICK, f"noise.repeats={repeats}", *more)
    assert cli.main(cli.run_job, CONF, line) == 0
    return sorted(plan_jobs(CONF, line), key=lambda one: one.noise.seed)


def test_the_record_gets_the_spread_of_its_repeats(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = repeated(tiny_folder, tmp_path, 3, "bits=2")
    assert [one.noise.seed for one in configs] == [0, 1, 2]
    first, *others = records = [read_record(one.directory) for one in configs]
    assert first.summary["noise_repeats"] == 3 and first.summary["noise_seed"] == 0
    assert len({record.hashes["calibration"] for record in records}) == 1
    logs = [math.log(record.metrics["perplexity/text"]) for record in records]
    noise = first.metrics["noise/perplexity/text"]
    assert noise == pytest.approx(np.std(logs, ddof=1)) and 0 < noise < 0.5
    growth = [record.metrics["error/growth"] for record in records]
    assert first.metrics["noise/error/growth"] == pytest.approx(np.std(growth, ddof=1))
    assert not any(key.startswith("noise/") for one in others for key in one.metrics)
    assert all("noise_repeats" not in one.summary for one in others)
    value = first.metrics["perplexity/text"]
    assert f" {value:.4g} ±{value * noise:.2g}" in capsys.readouterr().out.split("peak GB")[1]


def test_more_repeats_are_added_to_a_run_that_is_done(tiny_folder: Path, tmp_path: Path) -> None:
    alone = configured(tiny_folder, tmp_path, *QUICK)
    do(alone)
    before = read_record(alone.directory)
    first, second, third = repeated(tiny_folder, tmp_path, 3)
    assert first.run_id == alone.run_id
    record = read_record(alone.directory)
    assert record.started == before.started and record.samples == before.samples
    assert record.summary["noise_repeats"] == 3
    stamp = (second.directory / "record.json").stat().st_mtime_ns
    noise = record.metrics["noise/perplexity/text"]
    # A sweep over the seed is the same thing; one repeat more, the others stay.
    do(configured(tiny_folder, tmp_path, *QUICK, "noise.seed=3"))
    updated = update_noise(third)
    assert updated == read_record(alone.directory)
    assert updated.summary["noise_repeats"] == 4
    assert updated.metrics["noise/perplexity/text"] != noise
    assert (second.directory / "record.json").stat().st_mtime_ns == stamp
    assert update_noise(third) is None  # nothing new


def test_a_repeat_of_another_text_is_none(tiny_folder: Path, tmp_path: Path) -> None:
    first, second, _ = repeated(tiny_folder, tmp_path, 3)
    other = read_record(second.directory)
    other.hashes["text"] = "of another text"
    write_record(second.directory, other)
    record = read_record(first.directory)
    del record.metrics["noise/perplexity/text"], record.summary["noise_repeats"]
    write_record(first.directory, record)
    assert update_noise(first) is None
    assert "noise_repeats" not in read_record(first.directory).summary


def test_float64_has_next_to_none(tiny_folder: Path, tmp_path: Path) -> None:
    single, double = (
        read_record(repeated(tiny_folder, tmp_path, 3, f"model.dtype=float{bits}")[0].directory)
        for bits in (32, 64)
    )
    assert single.metrics["noise/perplexity/text"] > 1e-9
    assert double.metrics["noise/perplexity/text"] < 1e-12


def test_the_formula() -> None:
    runs = [
        {"perplexity/a": value, "accuracy/b": value / 10, "accuracy_stderr/b": 0.1}
        for value in (2.0, 3.0, 5.0)
    ]
    runs[0] |= {"perplexity/lost": 4.0, "noise/perplexity/a": 9.0, "kl/a": float("inf")}
    runs[1] |= {"kl/a": 1.0}
    found = spread(runs)
    assert found == {
        "noise/perplexity/a": pytest.approx(np.std(np.log([2, 3, 5]), ddof=1)),
        "noise/accuracy/b": pytest.approx(np.std([0.2, 0.3, 0.5], ddof=1)),
    }
    assert METRICS["noise"] == ("", "lower")


def test_it_is_no_part_of_the_identity_but_for_the_seed(tiny_folder: Path, tmp_path: Path) -> None:
    plain, other = (configured(tiny_folder, tmp_path, word) for word in ("seed=0", "noise.seed=2"))
    assert "noise" not in plain.identity()
    assert replace(plain, noise=replace(plain.noise, repeats=9)).run_id == plain.run_id
    assert other.run_id != plain.run_id and "-n2-" in other.run_id
    full = [configured(tiny_folder, tmp_path, "method=none", f"noise.seed={k}") for k in (0, 2)]
    assert full[0].run_id == full[1].run_id


def test_full_precision_is_not_repeated(tiny_folder: Path, tmp_path: Path) -> None:
    line = words(tiny_folder, tmp_path, "-m", "method=none,rtn", "noise.repeats=4")
    methods = [one.method_name for one in plan_jobs(CONF, line)]
    assert methods == ["none", "rtn", "rtn", "rtn", "rtn"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("noise.repeats=0",), r"noise\.repeats=0: must be at least 1"),
        (("noise.seed=-1",), r"noise\.seed=-1: must be at least 0"),
        (("noise.seed=2", "noise.repeats=3"), r"noise\.repeats=3 takes the seeds 0 to 2 itself"),
    ],
)
def test_what_cannot_be_is_said(
    more: tuple[str, ...], said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        plan_jobs(CONF, words(tiny_folder, tmp_path, *more))
    assert "\n" not in str(caught.value)


def test_an_agent_of_wandb_sweeps_over_the_seed(
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    line = words(tiny_folder, tmp_path, "noise.repeats=3")
    assert cli.main(cli.run_job, CONF, line) == 2
    assert "noise.repeats=3: the process of a W&B agent has" in capsys.readouterr().err


def test_a_dry_run_counts_the_repeats(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(tiny_folder, tmp_path / "results", "noise.repeats=3", "dry_run=true")
    assert cli.main(cli.run_job, CONF, line) == 0
    assert "4 of 4 to do" in capsys.readouterr().out  # with the full-precision run


def test_the_repeats_count_up_to_the_first_that_is_not_done(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = configured(tiny_folder, tmp_path, *QUICK)
    for seed, status in enumerate(("done", "done", "stopped", "done")):
        one = replace(config, noise=Noise(seed))
        record = Record(one.run_id, status, metrics={"perplexity/text": 2.0 + seed})
        record.stopped = {"block": 0, "relative_error": 1.0} if status == "stopped" else None
        one.directory.mkdir(parents=True)
        write_record(one.directory, record)
    updated = update_noise(config)
    assert updated is not None and updated.summary["noise_repeats"] == 2
    assert updated.metrics["noise/perplexity/text"] == pytest.approx(math.log(1.5) / math.sqrt(2))
