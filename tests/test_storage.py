"""Effective bits are known before a run; test_packing.py counts those of a linear byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import configured, do

from harness.command.estimate import Estimator

pytestmark = pytest.mark.long  # whole runs, or every composition


@pytest.mark.parametrize(
    "more",
    [
        ("method=rtn", "symmetric=true", "group_size=16"),
        ("method=gptq", "method.act_order=true", "group_size=16"),
        ("method=awq", "quantize.blocks=1:"),
        ("method=quip",),
        ("method=gptq", "transform=[rescale,hadamard]", "range=mse", "refit=round"),
        ("method=rtn", "format=nf4", "group_size=16"),
        ("method=gptq", "format=nvfp4", "scales=float32", "transform=awq"),
        ("method=gptq", "+overrides={*.k_proj: {bits: 5, group_size: 16}}"),
        ("method=quantease", "method.iterations=2", "method.outliers.fraction=0.03"),
        ("method=quantease", "method.iterations=2", "method.outliers={fraction: 0.1, structured: true}"),
        ("method=qqa", "method.steps=2", "quantize.exclude=[*.o_proj]"),
        ("method=none",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_estimate_s_bits_are_the_record_s(
    more: tuple[str, ...], tiny_folder: Path, tmp_path: Path
) -> None:
    fixed = ("bits=4", "baseline=false", "eval.divergence=false")
    config = configured(tiny_folder, tmp_path, *fixed, *more)
    expected, record = Estimator()(config).bits_per_weight, do(config)
    assert record.bits_per_weight == pytest.approx(expected, rel=1e-12)
