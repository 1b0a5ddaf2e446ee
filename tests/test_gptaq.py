import pytest
import torch
from grids import uniform
from reference import gptq, instance

from harness.methods.gptaq import GPTAQ
from harness.methods.gptq import GPTQ, column_order, inverse_factor
from harness.numerics.statistics import collect


def quantized(method, weight, statistics, bits=3, size=None):
    return method.quantize({"w": weight}, statistics, uniform(bits, size))["w"]


@pytest.mark.parametrize("mode", ["plain", "rescomp"])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [None, 20])
def test_agrees_with_column_by_column_least_squares(size, act_order, mode):
    weight, inputs, reference = instance(rows=10, columns=160, tokens=600)
    statistics = collect(inputs, reference, cross=True)
    method = GPTAQ(act_order=act_order, strength=0.6, mode=mode)
    result = quantized(method, weight, statistics, 3, size)
    expected = gptq(
        weight, statistics.hessian, 3, group_size=size, act_order=act_order,
        cross=statistics.cross, strength=0.6, rescomp=mode == "rescomp",
    )  # fmt: skip
    assert ((result.weight - expected).abs() < 1e-4).float().mean() >= 0.999


def test_carry_is_the_least_squares_answer_column_by_column():
    """P_jF = a C_jF (H_FF)⁻¹, F = all columns after j."""
    _, inputs, reference = instance(columns=30)
    statistics = collect(inputs.double(), reference.double(), cross=True)
    factor, _ = inverse_factor(statistics.hessian, 0.0)
    carry = GPTAQ(strength=0.25).carry(statistics, column_order(factor, False), factor).updated
    for j in range(29):
        after = slice(j + 1, None)
        expected = 0.25 * torch.linalg.solve(
            statistics.hessian[after, after], statistics.cross[j, after]
        )
        torch.testing.assert_close(carry[j, after], expected, rtol=1e-8, atol=1e-10)
    assert torch.equal(carry, carry.triu(1))


def test_lowers_the_total_error_of_gptq():
    for seed in range(10):
        weight, inputs, reference = instance(80, 60, 400, seed=seed, mismatch=0.3)
        statistics = collect(inputs, reference, cross=True, gap=True)
        errors = [
            statistics.total_error(weight, quantized(method, weight, statistics).weight)
            for method in (GPTQ(), GPTAQ(), GPTAQ(strength=0.5))
        ]
        assert errors[2] < errors[1] < errors[0]


def test_rescomp_differs_from_the_first_update_on():
    """Nothing has been updated before the first column, nor ever without strength."""
    weight, inputs, reference = instance()
    statistics = collect(inputs, reference, cross=True)
    plain, other = (
        quantized(GPTAQ(mode=mode), weight, statistics) for mode in ("plain", "rescomp")
    )
    assert torch.equal(plain.codes[:, 0], other.codes[:, 0])
    assert not torch.equal(plain.codes, other.codes)
    alike = collect(inputs, inputs, cross=True)  # its term is there without a mismatch as well
    codes = quantized(GPTAQ(mode="rescomp"), weight, alike).codes
    assert not torch.equal(codes, quantized(GPTQ(), weight, alike).codes)
    codes = quantized(GPTAQ(mode="rescomp", strength=0), weight, statistics).codes
    assert torch.equal(codes, quantized(GPTQ(), weight, statistics).codes)


def test_rescomp_at_full_strength_undoes_more_than_it_mends():
    weight, inputs, reference = instance(60, 128, 600, mismatch=0.3)
    statistics = collect(inputs, reference, cross=True, gap=True)
    errors = [
        statistics.total_error(weight, quantized(method, weight, statistics, bits=2).weight)
        for method in (GPTQ(), GPTAQ(mode="rescomp", strength=1.0), GPTAQ(mode="rescomp"), GPTAQ())
    ]
    assert errors[1] > 1.5 * errors[0]
    assert errors[2] == pytest.approx(errors[3], rel=0.1)


def test_without_strength_or_mismatch_it_is_gptq():
    weight, inputs, reference = instance()
    statistics = collect(inputs, reference, cross=True)
    expected = quantized(GPTQ(), weight, statistics).codes
    assert torch.equal(quantized(GPTAQ(strength=0), weight, statistics).codes, expected)
    alike = collect(inputs, inputs, cross=True)
    assert torch.equal(quantized(GPTAQ(), weight, alike).codes, expected)


def test_it_asks_for_the_cross_moment():
    weight, inputs, _ = instance()
    assert GPTAQ.needs == {"cross"}
    with pytest.raises(ValueError, match="no cross moment"):
        quantized(GPTAQ(), weight, collect(inputs))


def test_bad_options_are_all_named():
    with pytest.raises(
        ValueError, match=r"damping=-1.*; strength=2.*; mode='x': allowed are plain"
    ):
        GPTAQ(damping=-1, strength=2, mode="x")
