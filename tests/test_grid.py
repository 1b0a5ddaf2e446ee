from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import fit_range, golden, to_code

from harness.numerics.grid import GridSpec

SPECS = [(2, None), (3, 8), (4, None), (8, 16)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "size"), SPECS)
def test_agrees_with_the_literal_grid(bits, size, symmetric):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(bits)).double()
    weight[0] = weight[0].abs()
    weight[1] = -weight[1].abs()
    weight[2] = 0
    spec = GridSpec(bits, size, symmetric)
    grid = spec.fit(weight)
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
    grid = GridSpec(bits, 8, symmetric).fit(weight)
    value, (scale, _) = grid.nearest(weight), grid.expanded()
    apart = (value.double() - weight).abs() / scale
    assert apart.max() <= 0.5 + 1e-4
    assert torch.equal(grid.quantize(value), grid.quantize(weight))
    assert (grid.nearest(torch.zeros_like(weight)) == 0).all()


@pytest.mark.parametrize("size", [None, 8])
def test_a_symmetric_range_does_not_see_signs(size):
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    spec = GridSpec(4, size, symmetric=True)
    largest = weight.abs().reshape(8, -1, size or 32).amax(dim=2)
    for one in (weight, weight.abs(), -weight.abs()):
        grid = spec.fit(one)
        torch.testing.assert_close(grid.scale, 2 * largest / 15, rtol=1e-6, atol=0)
        assert grid.symmetric and (grid.zero == 8).all()


def test_the_largest_of_positive_weights_is_held():
    weight = torch.tensor([[2.115, 0.3, 1.2, 0.01]])
    value = GridSpec(8, symmetric=True).fit(weight).nearest(weight)
    torch.testing.assert_close(value, weight, rtol=0, atol=2.115 / 255 + 1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("power", [-110, -60, 60, 110])
def test_the_shrink_search_is_the_same_at_every_size_of_the_weights(power, symmetric):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) ** 3
    spec = GridSpec(3, 16, symmetric, mse=True)
    plain, sized = spec.fit(weight), spec.fit(weight * 2.0**power)
    assert torch.equal(sized.scale, plain.scale * 2.0**power)
    assert torch.equal(sized.zero, plain.zero)
    assert not torch.equal(plain.scale, GridSpec(3, 16, symmetric).fit(weight).scale)


def test_groups_must_divide():
    with pytest.raises(ValueError, match="group_size=24 does not divide the 32 input columns"):
        GridSpec(4, 24).fit(torch.randn(2, 32))


def test_shrink_search_never_raises_its_own_loss():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) ** 3
    losses = [
        (GridSpec(3, mse=mse).fit(weight).nearest(weight) - weight).abs().pow(2.4).sum(dim=1)
        for mse in (False, True)
    ]
    assert (losses[1] <= losses[0]).all()
    assert losses[1].sum() < 0.95 * losses[0].sum()


def test_bits_per_weight_counts_scale_and_zero():
    weight = torch.randn(4, 64)
    assert GridSpec(3).fit(weight).bits_per_weight() == 3 + (16 + 3) / 64
    assert GridSpec(3, 32).fit(weight).bits_per_weight() == 3 + (16 + 3) / 32


@pytest.mark.parametrize("name", ["rtn_s_seed121", "rtn_l_seed122", "rtn_s_seed123_onesided"])
def test_golden(name):
    arrays = golden(name)
    for key in [key for key in arrays if key.startswith("gptq_Q__")]:
        bits, size = (int(part[1:]) for part in key.removeprefix("gptq_Q__").split("_"))
        grid = GridSpec(bits, None if size < 0 else size).fit(arrays["W"])
        for part, value in (("scale", grid.scale), ("zero", grid.zero)):
            torch.testing.assert_close(value, arrays[key.replace("Q", part)], rtol=1e-5, atol=0)
        torch.testing.assert_close(grid.nearest(arrays["W"]), arrays[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [None, 5, 8])
def test_a_trimmed_range_shrinks_with_what_is_left_out(size, symmetric):
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    spec = GridSpec(3, size, symmetric)
    scales = [spec.fit_trimmed(weight, fraction).scale for fraction in (0.0, 0.3, 0.6, 0.99)]
    assert torch.equal(scales[0], spec.fit(weight).scale)
    for wide, narrow in pairwise(scales):
        assert (narrow <= wide).all() and (narrow > 0).all()
