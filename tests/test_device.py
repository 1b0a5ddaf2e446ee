"""Whole runs with device=cuda:0 on the stand-in: the figures of the CPU, and few waits."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from runs import configured, do
from standin import NAME, Standin
from test_checkpoints import killed_at

from harness import pipeline
from harness.numerics.device import doubt, doubting, read, there
from harness.records.record import Record
from harness.walk.streaming import StreamedBlock

pytestmark = pytest.mark.long  # whole runs

# Every method, transform, range and format, each at least once; float64, where no order of summation shows.
ALONE = ("model.dtype=float64", "baseline=false", "eval.divergence=false")
FIRST = (*ALONE, "calibration.length=32", "quantize.blocks=0:1")
COMPOSITIONS = {
    "gptq": ("method=gptq", "method.act_order=true", "group_size=16", "range=mse", "refit=round"),
    "gptaq": ("method=gptaq", "transform=hadamard", "range=mse", "format=fp4"),
    "qronos": ("method=qronos", "transform=orthogonal", "range=loss", "format=nvfp4", "group_size=16"),
    "quantease": ("method=quantease", "method.iterations=4", "range=rms", "format=midrise"),
    "outliers": ("method=quantease", "method.iterations=4", "method.outliers.fraction=0.05"),
    "columns": (
        "method=quantease", "method.iterations=4", "method.outliers.fraction=0.1",
        "method.outliers.structured=true", "range=loss",
    ),
    "qqa": ("method=qqa", "method.steps=8", "transform=awq", "range=minmax", "format=nf4"),
    "awq": ("method=awq",),
    "quip": ("method=quip",),
    "rtn": (
        "method=rtn", "transform=rescale", "format=mxfp4", "group_size=32", "range=own",
        "quantize.exclude=[*.down_proj]",
    ),
    "gauss": ("method=rtn", "format=gauss", "qep.target=residual", "qep.statistics=reference"),
    "auto": ("qep.alpha=auto", "calibration.holdout=1", "qep.dampings=[1,0.1]"),
    "budget": ("bits=[2,3]", "budget=3.5"),
}  # fmt: skip


def rows(record: Record, results: Path) -> list[dict[str, Any]]:
    folder = results / "local" / record.run
    files = [folder / "layers.jsonl", folder / "blocks.jsonl"]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def both(
    folder: Path, results: Path, *more: str
) -> tuple[tuple[Record, list[Any]], tuple[Record, list[Any]], Standin]:
    """A run on the CPU and one on the stand-in, each with its rows."""
    plain = do(configured(folder, results / "cpu", *more))
    with Standin() as device:
        found = do(configured(folder, results / "cuda", "device=cuda:0", *more))
    return (plain, rows(plain, results / "cpu")), (found, rows(found, results / "cuda")), device


def close(one: Any, other: Any, rel: float = 1e-9) -> None:
    """Equal but for the last digits of numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key], rel)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            close(*pair, rel)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=rel, abs=1e-15, nan_ok=True)
    else:
        assert one == other


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_run_on_a_device_has_the_cpu_s_figures(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    plain, found, device = both(tiny_folder, tmp_path, *FIRST, *COMPOSITIONS[name])
    assert found[0].status == "done"
    assert found[0].environment["device"] == f"cuda:0 ({NAME})"
    assert found[0].peak_device_memory == device.peak > 0 == plain[0].peak_device_memory
    close(plain[0].metrics, found[0].metrics)
    close(plain[1], found[1])


def test_every_axis_is_among_them() -> None:
    said = " ".join(word for words in COMPOSITIONS.values() for word in words)
    for axis in ("method", "transform", "range", "format"):
        for path in (Path(__file__).parent.parent / "conf" / axis).glob("*.yaml"):
            assert path.stem in ("none", "own", "int") or f"{axis}={path.stem}" in said, path


def test_a_mixture(tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    build("mixtral").save_pretrained(tmp_path / "tiny")
    plain, found, _ = both(tmp_path, tmp_path, *FIRST, "method=rtn", "experts.min_tokens=40")
    assert plain[0].metrics.keys() >= {"routing/agreement"}
    close(plain[0].metrics, found[0].metrics)
    close(plain[1], found[1])


def test_a_killed_run_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    more = (*ALONE, "checkpoint.every=1", "method=rtn")
    plain = do(configured(tiny_folder, tmp_path / "cpu", *more))
    with Standin():
        config = configured(tiny_folder, tmp_path / "cuda", "device=cuda:0", *more)
        with killed_at(8):
            do(config)
        found = do(config)
    assert found.resumed == 1
    close(rows(plain, tmp_path / "cpu"), rows(found, tmp_path / "cuda"))


def test_a_streamed_run_brings_a_block_once_for_many_batches(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiz = tmp_path / "quiz.jsonl"
    asked = [
        {"query": f"the {n}", "choices": ["city", "old river"], "gold": n % 2} for n in range(6)
    ]
    quiz.write_text("".join(json.dumps(one) + "\n" for one in asked))
    more = (f"eval.tasks=[{quiz}]", "method=rtn", "eval.windows=6", "eval.batch_tokens=16")
    more = (*more, "model.dtype=float64", "calibration.hold=blocks")
    plain = do(configured(tiny_folder, tmp_path / "cpu", *more))
    brought: Counter[str] = Counter()
    enter = StreamedBlock.enter

    def counted(block: StreamedBlock) -> None:
        brought[phase[-1]] += not block.inside
        enter(block)

    phase = ["load"]
    measure = pipeline.evaluate

    def evaluating(*given: Any) -> Any:
        phase.append(f"evaluate {len(phase)}")
        used = measure(*given)
        phase.append("else")
        return used

    monkeypatch.setattr(StreamedBlock, "enter", counted)
    monkeypatch.setattr(pipeline, "evaluate", evaluating)
    with Standin():
        config = configured(
            tiny_folder, tmp_path / "cuda", "device=cuda:0", "model.streaming=true", *more
        )
        found = do(config)
    close(plain.metrics, found.metrics)
    # Six batches of text, and two forwards a batch of questions, in three blocks.
    evaluations = [brought[one] for one in phase if one.startswith("evaluate")]
    assert len(evaluations) == 2 and max(evaluations) <= 3 * (1 + 2)


def test_evaluation_tasks_and_checkpoints(tiny_folder: Path, tmp_path: Path) -> None:
    quiz = tmp_path / "quiz.jsonl"
    asked = [
        {"query": f"the {n}", "choices": ["city", "old river"], "gold": n % 2} for n in range(6)
    ]
    quiz.write_text("".join(json.dumps(one) + "\n" for one in asked))
    more = (f"eval.tasks=[{quiz}]", "method=rtn", "save=dense", "model.dtype=bfloat16")
    plain, found, _ = both(tiny_folder, tmp_path, *more)
    assert {"perplexity/text", "kl/text", "accuracy/quiz"} <= found[0].metrics.keys()
    close(plain[0].metrics, found[0].metrics, 1e-3)
    for kind in ("cpu", "cuda"):
        (saved,) = (tmp_path / kind).glob("local/*/dense/*.safetensors")
        assert saved.stat().st_size > 0


def test_a_run_waits_at_most_four_times_a_stage_and_twice_a_batch(
    tiny_folder: Path, tmp_path: Path
) -> None:
    more = ("device=cuda:0", "batch_tokens=16", "eval.batch_tokens=16", "calibration.windows=6")
    with Standin() as device:
        do(configured(tiny_folder, tmp_path, *more, "eval.windows=5", "group_size=16"))
    stages, batches = 12, 6 + 2 * 5  # those that calibrate, and those of the two models evaluated
    # Weights come once, a copy each; a model is looked at once, when it has loaded.
    apart = ("transformers/modeling_utils", "walk/watching", "walk/limits")
    assert device.total(apart=apart) <= 4 * stages + 2 * batches, device.said()


def test_only_the_models_own_products_are_reduced(tiny_folder: Path, tmp_path: Path) -> None:
    found, ids = [], []
    more = ("device=cuda:0", "method=qronos", "transform=orthogonal", "calibration.holdout=1")
    for word in ("precision=highest", "precision=high"):
        with Standin() as device:
            config = configured(tiny_folder, tmp_path, *more, word, "qep.alpha=auto")
            record = do(config)
        found.append(device.reduced)
        ids.append((record.run, record.hashes["model"], record.environment["precision"]))
    plain, reduced = found
    assert not plain and reduced
    ours = [
        one
        for one in reduced
        if not one.startswith(("transformers/", "walk/forwards", "walk/watching"))
    ]
    assert not ours, device.reduced
    for one, other in zip(*ids, strict=True):
        assert one != other
    on_cpu = configured(tiny_folder, tmp_path, "precision=high")
    assert on_cpu.run_id == configured(tiny_folder, tmp_path).run_id  # nothing is reduced there


def test_numbers_are_read_at_once_and_doubts_with_them() -> None:
    with Standin() as device:
        values = torch.arange(6.0, device="cuda:0").reshape(2, 3)
        with doubting():
            doubt(values.sum() < 0, lambda: ValueError("less than nothing"))
            assert read([values, values.max()]) == [[0, 1, 2, 3, 4, 5], [5]]
            assert sum(device.waits.values()) == 1
            doubt(values.sum() > 0, lambda: ValueError("first"))
            doubt(values.sum() > 1, lambda: ValueError("second"))
            with pytest.raises(ValueError, match="first"):
                read([values])
        with pytest.raises(ValueError, match="at the end"), doubting():
            doubt(values.sum() > 0, lambda: ValueError("at the end"))
        with pytest.raises(ValueError, match="outside"):
            doubt(values.sum() > 0, lambda: ValueError("outside"))
        with pytest.raises(KeyError), doubting():  # what went wrong first is what is said
            doubt(values.sum() > 0, lambda: ValueError("forgotten"))
            raise KeyError
        read([values])


def test_copies_from_the_host_need_no_wait() -> None:
    with Standin() as device:
        values = torch.randn(5)
        assert torch.equal(there(values, torch.device("cuda:0")).inner, values)
        assert not device.waits
        values.to("cuda:0")
        assert sum(device.waits.values()) == 1
    assert there(values, torch.device("cpu")) is values


def test_what_the_stand_in_refuses() -> None:
    with Standin():
        far, near = torch.ones(3, device="cuda:0"), torch.ones(3)
        for mixing in (lambda: far + near, lambda: near @ far, lambda: near[far.long()]):
            with pytest.raises(RuntimeError):
                mixing()
        with pytest.raises(TypeError):
            far.numpy()
        assert (far + 1).device == torch.device("cuda:0")
