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


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    groups=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    spread=st.floats(1e-3, 1e3),
)
def test_rounding_is_to_the_nearest_point_and_idempotent(bits, groups, seed, spread):
    weight = spread * torch.randn(5, 8 * groups, generator=torch.Generator().manual_seed(seed))
    grid = GridSpec(bits, 8).fit(weight)
    value = grid.nearest(weight)
    scale, _ = grid.expanded()
    assert ((value - weight).abs() <= scale * (1 + 1e-4)).all()
    assert torch.equal(grid.quantize(value), grid.quantize(weight))
    assert (grid.nearest(torch.zeros_like(weight)) == 0).all()


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
