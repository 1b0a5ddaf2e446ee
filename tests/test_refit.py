"""Scales and zeros by least squares once the codes are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from grids import uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import instance

from harness.formats.fp4 import FP4
from harness.formats.int import Int
from harness.formats.mxfp4 import MXFP4
from harness.formats.nf4 import NF4
from harness.formats.nvfp4 import NVFP4
from harness.methods.gptq import GPTQ
from harness.methods.qqa import QQA
from harness.methods.quantease import Outliers, QuantEase
from harness.methods.rtn import RTN
from harness.numerics import refit as module
from harness.numerics.forms import row_losses
from harness.numerics.refit import refit
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec
from harness.ranges.loss import Loss
from harness.ranges.minmax import MinMax

FORMS = [
    Int(2, scales="float32"), Int(3), Int(4, symmetric=True), NF4(), FP4("float32"), MXFP4(), NVFP4(),
]  # fmt: skip


def case(form, size=None, rows=9, columns=64, seed=0, dtype=torch.float32):
    """A weight, H, a grid and random codes about the nearest ones; a dead column and a row of zeros."""
    weight, inputs, _ = (one.to(dtype) for one in instance(rows, columns, 200, seed=seed))
    inputs[:, 5] = 0
    weight[3] = 0
    spec = GridSpec(form, MinMax(), form.group or size).of_weight(weight)
    grid = spec.fit(weight)
    source = torch.Generator().manual_seed(seed)
    moved = grid.quantize(weight).int() + torch.randint(-1, 2, weight.shape, generator=source)
    codes = moved.clamp(0, grid.codebook.top).to(torch.uint8)
    return weight, collect(inputs).hessian, grid, codes, spec.form.stored


def loss(grid, codes, weight, hessian):
    return row_losses((grid.dequantize(codes) - weight).double(), hessian.double())


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    size=st.sampled_from([None, 8, 32]),
    seed=st.integers(0, 10_000),
    double=st.booleans(),
    power=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_no_row_s_loss_rises(form, size, seed, double, power):
    dtype = torch.float64 if double else torch.float32
    weight, hessian, grid, codes, stored = case(form, size, seed=seed, dtype=dtype)
    better = refit(codes, grid, weight, hessian * power, stored)
    before, after = (loss(one, codes, weight, hessian) for one in (grid, better))
    assert (after <= before * (1 + 1e-9)).all()
    assert torch.equal(better.scale, stored(better.scale)) and (better.scale > 0).all()
    assert torch.equal(better.zero, better.zero.round())
    if type(form) is not MXFP4:  # which has few scales to choose from
        assert after.sum() < before.sum()


@pytest.mark.parametrize(
    "form", [Int(3, True, "float32"), NF4("float32"), FP4("float32")], ids=repr
)
@pytest.mark.parametrize("size", [None, 8, 32])
def test_scales_are_those_of_least_squares(form, size):
    """‖(W − Σ_g s_g D_g) X̂‖² by lstsq on raw activations, one row after the other."""
    weight, inputs, _ = (one.double() for one in instance(6, 32, 300))
    spec = GridSpec(form, MinMax(), size)
    grid = spec.fit(weight)
    codes = grid.quantize(weight)
    found = refit(codes, grid, weight, collect(inputs).hessian, form.stored)
    values = replace(grid, scale=torch.ones_like(grid.scale)).dequantize(codes)
    for i in range(6):
        features = torch.stack([values[i] * (grid.group == g) for g in range(grid.scale.shape[1])])
        expected = torch.linalg.lstsq(inputs @ features.T, inputs @ weight[i]).solution
        torch.testing.assert_close(found.scale[i], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("size", [None, 8])
def test_a_zero_is_the_best_of_all_for_a_single_group(size):
    """Every zero is tried, with the best scale for each: least squares has to find as good a one."""
    weight, inputs, _ = (one.double() for one in instance(8, size or 16, 300))
    hessian, grid = collect(inputs).hessian, uniform(3).fit(weight + 1.5)
    codes = grid.quantize(weight + 1.5)
    found = refit(codes, grid, weight, hessian, Int(3, scales="float32").stored)
    assert (found.zero != grid.zero).any()
    for i in range(8):
        best = []
        for zero in range(8):
            values = codes[i].double() - zero
            scale = (values @ hessian @ weight[i]) / (values @ hessian @ values)
            rest = scale * values - weight[i]
            if scale > 0:
                best.append((rest @ hessian @ rest).item())
        mine = loss(
            found.rows(slice(i, i + 1)), codes[i : i + 1], weight[i : i + 1], hessian
        ).item()
        free = sorted(best)
        assert mine <= free[1] * (1 + 1e-9)  # a real zero is rounded to the next code


@pytest.mark.parametrize("form", [Int(3), NVFP4()], ids=repr)
def test_pieces_of_rows_do_not_show(form, monkeypatch):
    weight, hessian, grid, codes, stored = case(form, 16, rows=30)
    whole = refit(codes, grid, weight, hessian, stored)
    monkeypatch.setattr(module, "CHUNK", 7 * 64)
    parts = refit(codes, grid, weight, hessian, stored)
    torch.testing.assert_close(parts.scale, whole.scale, rtol=1e-3, atol=0)
    torch.testing.assert_close(parts.zero, whole.zero)


def test_groups_in_any_order_of_columns():
    weight, hessian, grid, codes, stored = case(Int(3, scales="float32"), 8, dtype=torch.float64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    moved = replace(grid, group=grid.group[order])
    plain = refit(codes, grid, weight, hessian, stored)
    other = refit(codes[:, order], moved, weight[:, order], hessian[order][:, order], stored)
    wanted = weight.abs().amax(dim=1) > 0  # scales of a row of zeros are 0 but for rounding
    torch.testing.assert_close(other.scale[wanted], plain.scale[wanted])
    assert torch.equal(other.group, moved.group)


METHODS = [
    RTN(), GPTQ(), GPTQ(act_order=True), QuantEase(iterations=4, init="gptq"), QQA(steps=10),
    QuantEase(iterations=4, outliers=Outliers(0.02)),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("form", [Int(3), NVFP4()], ids=repr)
def test_refit_and_another_rounding_lower_every_row_s_loss(method, form):
    weight, inputs, _ = instance(rows=30, columns=64)
    statistics = collect(inputs)
    results = [
        method.quantize({"w": weight}, statistics, GridSpec(form, MinMax(), 16, refit=how))["w"]
        for how in ("none", "scales", "round")
    ]
    rows = [
        row_losses((one.weight - weight).double(), statistics.hessian.double()) for one in results
    ]
    assert (rows[1] <= rows[0] * (1 + 1e-5)).all() and (rows[2] <= rows[1] * (1 + 1e-5)).all()
    assert rows[1].sum() < rows[0].sum() and rows[2].sum() < rows[1].sum()
    assert torch.equal(results[1].codes, results[0].codes)
    for one in results:
        dense = one.grid.dequantize(one.codes)
        assert torch.equal(one.weight, dense if one.outliers is None else dense + one.outliers)
        assert one.storage.scales == results[0].storage.scales


def test_what_a_range_has_cut_comes_back_with_the_refit():
    """The ends of the range belong to the scales that it chose."""
    weight, inputs, _ = instance(rows=20, columns=64)
    spec = uniform(3, 16, range=Loss())
    result = RTN().quantize({"w": weight}, collect(inputs), replace(spec, refit="round"))["w"]
    assert spec.fit(weight, collect(inputs).hessian).ends is not None
    assert result.grid.ends is None
