"""Effective bits are what a packed linear takes, byte by byte, and known from its shape."""

from __future__ import annotations

import pytest
import torch
from grids import uniform
from packing import pack, unpack
from reference import instance

from harness.formats.fp4 import FP4
from harness.formats.int import Int
from harness.formats.midrise import MidRise
from harness.formats.mxfp4 import MXFP4
from harness.formats.nf4 import NF4
from harness.formats.nvfp4 import NVFP4
from harness.methods.awq import AWQ
from harness.methods.gptaq import GPTAQ
from harness.methods.gptq import GPTQ
from harness.methods.qqa import QQA
from harness.methods.quantease import Outliers, QuantEase
from harness.methods.quip import QuIP
from harness.methods.rtn import RTN
from harness.numerics.grid import Grid
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax
from harness.ranges.rms import RMS
from harness.recipe import Recipe, quantize_stage
from harness.transforms.hadamard import Hadamard
from harness.transforms.orthogonal import Orthogonal
from harness.transforms.rescale import Rescale

METHODS = [
    RTN(),
    GPTQ(act_order=True),
    GPTQ(act_order=True, static_groups=True),
    GPTAQ(act_order=True),
    QQA(steps=5),
    QuantEase(iterations=3, act_order=True),
    QuantEase(iterations=3, act_order=True, init="gptq"),
    QuantEase(iterations=3, outliers=Outliers(0.02)),
    QuantEase(iterations=3, outliers=Outliers(0.05, structured=True), act_order=True),
]
GRIDS = [
    GridSpec(Int(2), MinMax(), 10),
    GridSpec(Int(3, symmetric=True), MinMax()),
    GridSpec(Int(4, scales="float32"), MinMax(), 16),
    GridSpec(Int(8, symmetric=True), MinMax(), 16),
    GridSpec(Int(3), MinMax(), 80),
    GridSpec(NF4(), MinMax(), 16),
    GridSpec(FP4("float32"), MinMax()),
    GridSpec(NVFP4(), MinMax(), 16),
    GridSpec(MidRise(3), RMS()),
]
PLANS = [
    AWQ.composition.transforms,
    QuIP.composition.transforms,
    {"hadamard": Hadamard(sides="output"), "rescale": Rescale(scales="float32")},
    {"orthogonal": Orthogonal()},
]


def check(recipe: Recipe, rows: int = 16, columns: int = 80) -> tuple[set[str], int]:
    """Packs a linear and reads it back; the names of its arrays, and its bytes."""
    weight, inputs, reference = instance(rows=rows, columns=columns)
    statistics = collect(inputs, reference, cross=True, magnitude=True)
    found = quantize_stage({"w": recipe}, {"w": weight}, statistics)["w"]
    inside = found.basis.into(weight)
    packed = pack(found, recipe.spec.of_weight(inside))
    assert found.storage == recipe.storage(rows, columns)
    assert found.storage.total == 8 * packed.size
    assert found.bits_per_weight == found.storage.total / weight.numel()
    value = unpack(packed, found.basis)
    torch.testing.assert_close(value, found.weight.double(), rtol=1e-5, atol=2e-3)
    if found.outliers is None:  # which are stored as float16
        torch.testing.assert_close(value, found.weight.double(), rtol=1e-5, atol=2e-5)
    return set(packed.arrays), packed.size


@pytest.mark.parametrize("spec", GRIDS, ids=repr)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_packed_linear_has_so_many_bits_and_can_be_read_from_them(method, spec):
    arrays, _ = check(Recipe(method, spec))
    ordered = getattr(method, "act_order", False) and not getattr(method, "static_groups", False)
    ordered = ordered and getattr(method, "init", "gptq") == "gptq" and spec.group_size in (10, 16)
    assert ("groups" in arrays) == ordered
    assert ("zeros" in arrays) == (isinstance(spec.form, Int) and not spec.form.symmetric)


@pytest.mark.parametrize("plan", PLANS, ids=lambda one: "+".join(map(repr, one.values())))
@pytest.mark.parametrize("spec", GRIDS[:1] + GRIDS[-2:], ids=repr)
def test_so_has_one_in_another_basis(plan, spec):
    arrays, _ = check(Recipe(RTN(), spec, plan))
    assert len(arrays) > 2


def test_block_formats_of_a_whole_number_of_blocks():
    for form, size in ((MXFP4(), 96 * 16 // 2 + 3 * 16), (NVFP4(), 96 * 16 // 2 + 6 * 16 + 4)):
        _, bytes_ = check(Recipe(GPTQ(), GridSpec(form, MinMax(), form.group)), 16, 96)
        assert bytes_ == size


def bits(method, **options) -> float:
    weight, inputs, _ = instance(rows=64, columns=32)
    spec = uniform(4, 16, scales="float16", **options)
    return method.quantize({"w": weight}, collect(inputs), spec)["w"].bits_per_weight


def test_a_symmetric_grid_costs_no_zeros_and_an_order_with_groups_its_index() -> None:
    assert bits(GPTQ()) == 5.25 and bits(GPTQ(), symmetric=True) == 5.0
    assert bits(GPTQ(act_order=True)) == 5.25 + 16 / 64
    assert bits(GPTQ(act_order=True, static_groups=True)) == 5.25


def test_groups_that_an_order_leaves_together_need_no_index() -> None:
    scale, zero, book = torch.ones(3, 2), torch.zeros(3, 2), Int(4).codebook
    assert not Grid(scale, zero, torch.tensor([0, 0, 1, 1]), book).indexed
    for group in ([1, 1, 0, 0], [0, 1, 0, 1]):
        assert Grid(scale, zero, torch.tensor(group), book).indexed
    assert not Grid(scale[:, :1], zero[:, :1], torch.zeros(4, dtype=torch.long), book).indexed


def test_the_linears_of_a_stage_are_packed_each_by_itself() -> None:
    weight, inputs, _ = instance(rows=24, columns=32)
    statistics = collect(inputs)
    for spec in (uniform(4, 16), GridSpec(NVFP4(), MinMax(), 16)):
        for method in (GPTQ(act_order=True), QuantEase(outliers=Outliers(0.1, structured=True))):
            parts = method.quantize({"a": weight[:8], "b": weight[8:]}, statistics, spec)
            for part in parts.values():
                assert part.storage == method.storage(*part.weight.shape, spec)
