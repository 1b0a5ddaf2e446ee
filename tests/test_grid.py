from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from grids import uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import fit_range, golden, to_code

from harness.formats.int import Int
from harness.methods.quantease import trimmed_fit
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax

SPECS = [(2, None), (3, 8), (4, None), (8, 16)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "size"), SPECS)
def test_agrees_with_the_literal_grid(bits, size, symmetric):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(bits)).double()
    weight[0] = weight[0].abs()
    weight[1] = -weight[1].abs()
    weight[2] = 0
    grid = uniform(bits, size, symmetric).fit(weight)
    codes = grid.quantize(weight)
    for i in range(6):
        for g in range(32 // (size or 32)):
            columns = slice(g * (size or 32), (g + 1) * (size or 32))
            scale, zero = fit_range(weight[i, columns].tolist(), bits, symmetric)
            assert grid.scale[i, g].item() == pytest.approx(scale, rel=1e-12)
            assert grid.zero[i, g].item() == zero
            expected = [to_code(w, scale, zero, bits) for w in weight[i, columns].tolist()]
            assert codes[i, columns].tolist() == expected


@settings(max_examples=150, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    groups=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    power=st.floats(-44, 38.3),
)
def test_every_weight_is_within_half_a_step_of_its_point(bits, symmetric, groups, seed, power):
    """Rows of both signs, of one sign, constant, zero, next to nothing and at the end of float32."""
    weight = torch.randn(6, 8 * groups, generator=torch.Generator().manual_seed(seed))
    weight[1].abs_()
    weight[2].abs_().neg_()
    weight[3] = weight[3, 0]
    weight[4] = 0
    weight = (weight / weight.abs().max()).double().mul(10**power).float()
    grid = uniform(bits, 8, symmetric).fit(weight)
    value, (scale, _) = grid.nearest(weight), grid.expanded()
    apart = (value.double() - weight).abs() / scale
    assert apart.max() <= 0.5 + 1e-4
    assert torch.equal(grid.quantize(value), grid.quantize(weight))
    assert (grid.nearest(torch.zeros_like(weight)) == 0).all()


@pytest.mark.parametrize("size", [None, 8])
def test_a_symmetric_range_does_not_see_signs(size):
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    spec = uniform(4, size, symmetric=True)
    largest = weight.abs().reshape(8, -1, size or 32).amax(dim=2)
    for one in (weight, weight.abs(), -weight.abs()):
        grid = spec.fit(one)
        torch.testing.assert_close(grid.scale, 2 * largest / 15, rtol=1e-6, atol=0)
        assert grid.codebook.zero_bits == 0 and (grid.zero == 8).all()


def test_the_largest_of_positive_weights_is_held():
    weight = torch.tensor([[2.115, 0.3, 1.2, 0.01]])
    value = uniform(8, symmetric=True).fit(weight).nearest(weight)
    torch.testing.assert_close(value, weight, rtol=0, atol=2.115 / 255 + 1e-6)


def test_groups_must_divide():
    with pytest.raises(ValueError, match="group_size=24 does not divide the 32 input columns"):
        uniform(4, 24).fit(torch.randn(2, 32))


def test_bits_are_those_of_a_byte():
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"bits={bits}: allowed are 2 to 8"):
            Int(bits)


def test_bits_per_weight_counts_scale_and_zero():
    weight = torch.randn(4, 64)
    for scales, bits in (("float16", 16), ("float32", 32)):
        for size in (64, 32):
            storage = uniform(3, size, scales=scales).fit(weight).storage
            assert storage.bits_per_weight == 3 + (bits + 3) / size


def test_weights_are_cut_where_the_range_says_so():
    """Not to the outermost points of the grid, which lie elsewhere: to the ends themselves."""
    weight = torch.tensor([[-1.0, 0.2, 3.0, 1.4]])
    grid = uniform(2, 4).fit(torch.tensor([[-1.0, 0.0, 1.0, 0.5]]))  # scale 2/3, zero 2 of 0 … 3
    assert torch.equal(grid.cut(weight), weight)
    assert grid.quantize(weight).tolist() == [[0, 2, 3, 3]]
    narrow = replace(grid, ends=(torch.tensor([[-1.0]]), torch.tensor([[0.3]])))
    assert torch.equal(narrow.cut(weight), weight.clamp(-1.0, 0.3))
    assert narrow.quantize(weight).tolist() == [[0, 2, 2, 2]]
    assert torch.equal(narrow.rows(slice(0, 1)).cut(weight), narrow.cut(weight))


def test_a_fitted_grid_is_given_to_all_that_ask():
    weight = torch.randn(4, 16)
    grid = uniform(3, 8).fit(weight)
    spec = GridSpec(Int(3), MinMax(), 8, given=grid)
    assert spec.fit(2 * weight) is grid
    assert spec.static and not uniform(3, 8).static and uniform(3).static


@pytest.mark.parametrize("name", ["rtn_s_seed121", "rtn_l_seed122", "rtn_s_seed123_onesided"])
def test_golden(name):
    arrays = golden(name)
    for key in [key for key in arrays if key.startswith("gptq_Q__")]:
        bits, size = (int(part[1:]) for part in key.removeprefix("gptq_Q__").split("_"))
        grid = uniform(bits, None if size < 0 else size).fit(arrays["W"])
        for part, value in (("scale", grid.scale), ("zero", grid.zero)):
            torch.testing.assert_close(value, arrays[key.replace("Q", part)], rtol=1e-5, atol=0)
        torch.testing.assert_close(grid.nearest(arrays["W"]), arrays[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [None, 5, 8])
def test_a_trimmed_range_shrinks_with_what_is_left_out(size, symmetric):
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    spec = uniform(3, size, symmetric)
    hessian = torch.eye(40)
    scales = [
        trimmed_fit(weight, spec, hessian, fraction).scale for fraction in (0.0, 0.3, 0.6, 0.99)
    ]
    assert torch.equal(scales[0], spec.fit(weight).scale)
    for wide, narrow in pairwise(scales):
        assert (narrow <= wide).all() and (narrow > 0).all()
