"""Ranges: searches against brute force, and the compiled search against its twin."""

from __future__ import annotations

import math

import pytest
import torch
from grids import uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import instance, to_code

from harness.formats.fp4 import FP4
from harness.formats.int import Int
from harness.formats.midrise import MidRise
from harness.formats.mxfp4 import MXFP4
from harness.formats.nf4 import NF4
from harness.methods.gptq import GPTQ
from harness.methods.quantease import QuantEase
from harness.methods.rtn import RTN
from harness.numerics import kernels, twins
from harness.numerics.shrink import least_error, least_error_torch
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec, extremes
from harness.ranges.loss import Loss
from harness.ranges.minmax import MinMax
from harness.ranges.mse import MSE
from harness.ranges.rms import RMS

FORMS = [
    Int(2), Int(3, symmetric=True), Int(4, scales="float32"), Int(8), NF4(), FP4(), MXFP4(), MidRise(3),
]  # fmt: skip
SIZES = [1, 2, 31, 127, 128, 129, 256, 257, 600]


def rows(count, size, kind=0, seed=0):
    weight = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    if kind == 1:
        return weight**3
    if kind == 2:
        return weight.abs() + 0.3
    if kind == 3:  # zero and constant rows
        weight[::3] = 0
        weight[1::3] = weight[1::3, :1]
    return weight


def candidates(weight, form, count=80):
    shrink = 1 - torch.arange(count) / 100
    return form.bounded(*(shrink[:, None] * end for end in extremes(weight)))


def losses(weight, scale, zero, form, norm):
    """Σ |v − w|^norm ``[grids, rows]`` in units of the first scale, in float64."""
    found = []
    for s, z in zip(scale[:, :, None], zero[:, :, None], strict=True):
        book = form.codebook
        value = book.decode(book.encode(weight, s, z), s.double(), z.double())
        apart = (value - weight.double()) / scale[0, :, None].double()
        found.append(apart.abs().pow(norm).sum(dim=1))
    return torch.stack(found)


# The search for the least error of the weights


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_the_search_finds_the_least_error(form):
    """As its plain twin does; where grids are as good but for rounding it may take another."""
    for index, size in enumerate(SIZES):
        for norm in (0.7, 2.4, 6.0):
            weight = rows(34, size, kind=index % 4)
            grids = candidates(weight, form, 50)
            expected = losses(weight, *grids, form, norm)
            least = expected.min(dim=0).values
            for search in (least_error, least_error_torch):
                found = search(weight, *grids, form.codebook, norm)
                mine = expected.gather(0, found[None])[0]
                # a ratio w / s is off by 1e-7 of itself, and so is its distance x from a value: of
                # x^norm that is norm x^(norm − 1) as much
                noise = 4e-7 * norm * form.codebook.top * (least + size * 1e-3)
                assert (mine <= least * (1 + 1e-5) + noise).all(), (size, norm)


def test_the_search_and_its_twin_choose_the_same():
    for form in FORMS:
        weight = rows(200, 300)
        grids = candidates(weight, form)
        fast, plain = (
            f(weight, *grids, form.codebook, 2.4) for f in (least_error, least_error_torch)
        )
        assert (fast == plain).float().mean() >= 0.995, form  # but for near ties
        few, some = weight[:20], [one[:, :20] for one in grids]
        assert torch.equal(twins.least_error(few, *some, form.codebook, 2.4), plain[:20]), form


@settings(deadline=None)
@given(norm=st.floats(0.1, 8), value=st.floats(2**-13, 2**13, width=32))
def test_powers_on_a_device_are_powers(norm, value):
    found = twins.power(torch.tensor([value]), norm).item()
    exponent = abs(norm * math.log2(value))  # which is rounded to float32
    assert found == pytest.approx(value**norm, rel=3e-7 * (1 + norm) + 1e-7 * exponent)


def test_powers_on_a_device_of_what_is_no_normal_number():
    odd = torch.tensor([0.0, 1e-42, math.inf, math.nan])
    assert twins.power(odd, 0.1)[:3].tolist() == [0, 0, math.inf]
    assert twins.power(odd, 0.1)[3].isnan()


@settings(deadline=None)
@given(size=st.integers(1, 600), seed=st.integers(0, 100))
def test_sums_on_a_device_are_sums(size, seed):
    terms = torch.rand(3, size, generator=torch.Generator().manual_seed(seed))
    found = twins.ordered_sum(terms)
    torch.testing.assert_close(found, terms.double().sum(dim=1).float(), rtol=1e-6, atol=0)


def test_a_tie_keeps_the_first():
    """All rows of zeros, or of two values at the ends, are met by every grid, or by many alike."""
    for form in (Int(3), NF4(), MXFP4()):
        weight = torch.zeros(70, 40)
        weight[::2, 0] = 1.0
        grids = candidates(weight, form)
        assert (least_error(weight, *grids, form.codebook, 2.4)[1::2] == 0).all()
        same = torch.ones(5, 70), torch.zeros(5, 70)
        assert (least_error(rows(70, 40), *same, form.codebook, 2.4) == 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.randoms(), norm=st.floats(0.5, 4))
def test_the_order_of_grids_and_weights_does_not_matter(seed, order, norm):
    """Nor does it that scales shrink: any grids will do."""
    weight, form = rows(66, 100, seed % 4, seed), Int(3, scales="float32")
    scale, zero = candidates(weight, form)
    moved = list(range(80))
    order.shuffle(moved)
    plain = losses(weight, scale, zero, form, norm) * scale[0].double() ** norm
    found = least_error(weight, scale, zero, form.codebook, norm)
    other = least_error(weight.flip(1), scale[moved], zero[moved], form.codebook, norm)
    first, second = (plain.gather(0, one[None])[0] for one in (found, torch.tensor(moved)[other]))
    torch.testing.assert_close(first, second, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("power", [-126, -100, 60, 120])
def test_the_search_is_the_same_at_every_size_of_the_weights(power):
    weight = rows(70, 130, 1).clamp(-8, 8)
    for form in (Int(3, scales="float32"), Int(4, True, "float32"), NF4("float32")):
        found = [
            least_error(one, *candidates(one, form), form.codebook, 2.4)
            for one in (weight, weight * 2.0**power)
        ]
        large = (
            extremes(weight * 2.0**power)[1] / 15 > 2.0**-125
        )  # else scales end where floats do
        assert torch.equal(*(one[large] for one in found))


def test_rows_on_threads_find_what_one_thread_finds(threads):
    weight, form = rows(300, 90), Int(3)
    found = []
    for count in (1, 3):
        threads(count)
        found.append(least_error(weight, *candidates(weight, form), form.codebook, 2.4))
    assert torch.equal(*found)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# mse


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mse_never_ends_above_the_whole_range(form, dtype):
    weight = rows(20, 128).to(dtype)
    size = form.group or 64
    errors = [
        (GridSpec(form, one, size).fit(weight).nearest(weight) - weight)
        .abs().pow(2.4).reshape(20, -1, size).sum(dim=2)
        for one in (MinMax(), MSE())
    ]  # fmt: skip
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    assert form.bits > 3 or errors[1].sum() < 0.95 * errors[0].sum()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("power", [-110, -60, 60, 110])
def test_mse_is_the_same_at_every_size_of_the_weights(power, symmetric):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) ** 3
    spec = uniform(3, 16, symmetric, range=MSE())
    plain, sized = spec.fit(weight), spec.fit(weight * 2.0**power)
    assert torch.equal(sized.scale, plain.scale * 2.0**power)
    assert torch.equal(sized.zero, plain.zero)
    assert not torch.equal(plain.scale, uniform(3, 16, symmetric).fit(weight).scale)


def test_mse_is_the_search_of_gptq_s_code():
    """One row after the other in Python: ranges from 100 % down to 21 %, the first of the least."""
    weight = rows(6, 40, 1).double()
    grid = uniform(3, range=MSE()).fit(weight)
    for row, scale, zero in zip(weight.tolist(), grid.scale, grid.zero, strict=True):
        lo, hi, tried = min(*row, 0.0), max(*row, 0.0), []
        for i in range(80):
            s = (1 - i / 100) * (hi - lo) / 7
            z = round(-lo * (1 - i / 100) / s)
            tried.append((sum(abs(s * (to_code(w, s, z, 3) - z) - w) ** 2.4 for w in row), s, z))
        least = min(tried, key=lambda one: one[0])
        assert (scale.item(), zero.item()) == (pytest.approx(least[1], rel=1e-12), least[2])


def test_how_many_ranges_are_tried():
    assert [
        MSE().tried,
        MSE(steps=100, smallest=0.55).tried,
        MSE(steps=4, smallest=0.0).tried,
    ] == [80, 45, 4]
    assert [Loss().tried, Loss(shrink=1.0).tried, Loss(steps=10, shrink=0.3).tried] == [10, 20, 3]


# loss


@pytest.mark.parametrize(
    "form", [Int(3, scales="float32"), Int(3, True), NF4(), MXFP4()], ids=repr
)
@pytest.mark.parametrize("size", [None, 32])
def test_loss_is_the_least_of_all_clipped_ranges(form, size):
    """Every row and group by itself: cut, fit min and max anew, round, weigh the error with H_gg."""
    size = form.group or size
    weight, inputs, _ = instance(rows=5, columns=64)
    inputs[:, :3] *= 30
    hessian = collect(inputs).hessian
    grid = GridSpec(form, Loss(), size).fit(weight, hessian)
    value, width = grid.nearest(weight), size or 64
    for i in range(5):
        for g in range(0, 64, width):
            own = slice(g, g + width)
            part, block = weight[i : i + 1, own], hessian[own, own]

            def loss(v, part=part, block=block):
                return ((v - part) @ block @ (v - part).T).item()

            tried = []
            for k in range(10):
                bound = part.abs().max() * (1 - k / 20)
                cut = part.clamp(-bound, bound)
                tried.append(loss(GridSpec(form, MinMax(), size and width).fit(cut).nearest(cut)))
            assert loss(value[i : i + 1, own]) == pytest.approx(min(tried), rel=1e-5)


def test_loss_needs_h_and_every_method_hands_it_over():
    weight, inputs, _ = instance(rows=20, columns=64)
    statistics = collect(inputs)
    spec = uniform(3, 16, range=Loss())
    with pytest.raises(ValueError, match="range=loss weighs errors with H"):
        spec.fit(weight)
    for method in (RTN(), GPTQ(), GPTQ(act_order=True), GPTQ(static_groups=True), QuantEase()):
        assert method.quantize({"w": weight}, statistics, spec)["w"].weight.isfinite().all()
    found = [
        statistics.local_error(weight, RTN().quantize({"w": weight}, statistics, one)["w"].weight)
        for one in (uniform(3, range=Loss()), uniform(3))
    ]
    assert found[0] < 0.9 * found[1]


# rms


def test_rms_is_one_range_for_all_of_a_weight():
    weight = rows(30, 64)
    grid = GridSpec(MidRise(3, "float32"), RMS()).fit(weight)
    expected = 2.4 * weight.square().mean().sqrt()
    torch.testing.assert_close(grid.scale, expected.expand(30, 1))
    assert grid.shared and grid.storage.scales == (1, 32)
    assert torch.equal(grid.cut(weight), weight.clamp(-expected, expected))
    assert uniform(3, range=RMS()).whole and uniform(3, range=RMS()).static
    with pytest.raises(ValueError, match="range=rms has one scale for all rows; refit=none"):
        GridSpec(Int(3), RMS(), refit="scales")


# GPTQ fits no grid that it does not use


@pytest.mark.parametrize(
    "method", [GPTQ(), GPTQ(act_order=True), GPTQ(static_groups=True)], ids=repr
)
def test_every_group_is_fitted_once(method, monkeypatch):
    seen = []
    plain = MinMax.fit
    monkeypatch.setattr(
        MinMax,
        "fit",
        lambda self, weight, *rest: seen.append(weight) or plain(self, weight, *rest),
    )
    weight, inputs, _ = instance(rows=kernels.LANES, columns=64)
    method.quantize({"w": weight}, collect(inputs), uniform(3, 16))
    assert len(seen) == 4


def test_bad_options_are_all_named():
    with pytest.raises(ValueError, match=r"steps=0: .*; smallest=1: .*; norm=0: "):
        MSE(steps=0, smallest=1, norm=0)
    with pytest.raises(ValueError, match=r"steps=0: .*; shrink=1.5: "):
        Loss(steps=0, shrink=1.5)
    with pytest.raises(ValueError, match="factor=0: allowed are positive numbers"):
        RMS(0)
