"""Effective bits are what a packed checkpoint takes, byte by byte, and known before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from packing import pack, unpack
from reference import instance
from runs import configured, do

from harness import quantize_layer
from harness.command.estimate import Estimator
from harness.methods.gptq import GPTQ
from harness.methods.quantease import Outliers, QuantEase
from harness.numerics.grid import Grid, GridSpec
from harness.numerics.statistics import collect

LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("rtn", {}),
    ("awq", {}),
    ("gptq", {"act_order": True}),
    ("gptq", {"act_order": True, "static_groups": True}),
    ("gptaq", {"act_order": True}),
    ("qqa", {}),
    ("quantease", {"act_order": True}),
    ("quantease", {"act_order": True, "init": "gptq"}),
    ("quantease", {"outliers": Outliers(0.02)}),
    ("quantease", {"outliers": Outliers(0.05, structured=True), "act_order": True}),
]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "size"), [(2, 10), (3, None), (4, 16), (8, 80)])
@pytest.mark.parametrize(
    ("method", "options"), LAYOUTS, ids=lambda one: one if isinstance(one, str) else "+".join(one)
)
def test_a_packed_linear_has_so_many_bits_and_can_be_read_from_them(
    method: str, options: dict[str, Any], bits: int, size: int | None, symmetric: bool
) -> None:
    weight, inputs, _ = instance(rows=16, columns=80)
    layer = quantize_layer(
        weight, inputs, method=method, bits=bits, group_size=size, symmetric=symmetric, **options
    )
    packed = pack(layer.quantized)
    assert layer.quantized.storage.total == 8 * packed.size
    assert layer.quantized.bits_per_weight == pytest.approx(8 * packed.size / weight.numel())
    torch.testing.assert_close(unpack(packed), layer.weight.double(), rtol=0.01, atol=0.01)
    indexed = options.get("act_order") and not options.get("static_groups") and size in (10, 16)
    indexed = indexed and (method != "quantease" or options.get("init") == "gptq")
    assert ("groups" in packed.arrays) == bool(indexed)
    assert ("zeros" in packed.arrays) == (not symmetric)


def test_a_symmetric_grid_costs_no_zeros_and_an_order_with_groups_its_index() -> None:
    weight, inputs, _ = instance(rows=64, columns=32)

    def bits(**options: Any) -> float:
        return quantize_layer(
            weight, inputs, method="gptq", bits=4, group_size=16, **options
        ).quantized.bits_per_weight

    assert bits() == 5.25 and bits(symmetric=True) == 5.0
    assert bits(act_order=True) == 5.25 + 16 / 64
    assert bits(act_order=True, static_groups=True) == 5.25


def test_groups_that_an_order_leaves_together_need_no_index() -> None:
    scale, zero = torch.ones(3, 2), torch.zeros(3, 2)
    together = Grid(scale, zero, torch.tensor([0, 0, 1, 1]), 4)
    assert not together.indexed
    for group in ([1, 1, 0, 0], [0, 1, 0, 1]):
        assert Grid(scale, zero, torch.tensor(group), 4).indexed
    assert not Grid(scale[:, :1], zero[:, :1], torch.zeros(4, dtype=torch.long), 4).indexed


def test_the_linears_of_a_stage_are_packed_each_by_itself() -> None:
    weight, inputs, _ = instance(rows=24, columns=32)
    spec, statistics = GridSpec(4, 16), collect(inputs)
    for method in (GPTQ(act_order=True), QuantEase(outliers=Outliers(0.1, structured=True))):
        parts = method.quantize({"a": weight[:8], "b": weight[8:]}, statistics, spec)
        for part in parts.values():
            assert part.storage == method.storage(*part.weight.shape, spec)


@pytest.mark.parametrize(
    "more",
    [
        ("method=rtn", "symmetric=true", "group_size=16"),
        ("method=gptq", "method.act_order=true", "group_size=16"),
        ("method=awq", "method.n_grid=3", "quantize.blocks=1:"),
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
