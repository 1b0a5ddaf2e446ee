import pytest
import torch
from grids import uniform
from reference import instance, qronos

from harness.methods.gptq import GPTQ
from harness.methods.qronos import Qronos
from harness.numerics.propagation import Propagation
from harness.numerics.statistics import collect


def case(rows=8, columns=16, tokens=120, seed=0, mismatch=0.4):
    weight, inputs, reference = (
        one.double() for one in instance(rows, columns, tokens, seed, mismatch)
    )
    return weight, inputs, reference, collect(inputs, reference, cross=True, gap=True)


def quantized(method, weight, statistics, bits=3, size=None):
    return method.quantize({"w": weight}, statistics, uniform(bits, size))["w"]


@pytest.mark.parametrize("act_order", [False, True])
def test_agrees_with_alternating_least_squares(act_order):
    """Column by column on raw activations, as the paper says it."""
    weight, inputs, reference, statistics = case()
    result = quantized(Qronos(damping=0.0, act_order=act_order), weight, statistics)
    expected = qronos(weight, inputs, reference, 3, act_order)
    torch.testing.assert_close(result.weight, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [None, 20])
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_after_its_first_column_it_takes_gptq_s_steps_on_the_corrected_weight(
    act_order, size, damping
):
    """Rows whose first column comes to the same point are GPTQ's on QEP's weight of α = 1, code by code.

    And only the first column decides: it is rounded from w_1 + [W C]_1 / H_11, not from w*_1.
    """
    weight, _, _, statistics = case(rows=200, columns=160, tokens=600)
    result = quantized(Qronos(damping=damping, act_order=act_order), weight, statistics, 3, size)
    propagation = Propagation(alpha=1.0, damping=damping)
    corrected = propagation.correct({"w": weight}, statistics)["w"].weight
    other = quantized(GPTQ(damping=damping, act_order=act_order), corrected, statistics, 3, size)
    first = statistics.hessian.diagonal().argmax() if act_order else 0
    same = result.codes[:, first] == other.codes[:, first]
    assert 0 < same.sum() < 200
    assert torch.equal(result.codes[same], other.codes[same])
    assert (result.codes[~same] != other.codes[~same]).float().mean() > 0.01
    alone = (
        weight[:, first] + weight @ statistics.cross[:, first] / statistics.hessian[first, first]
    )
    grid = result.grid
    scale, zero = (one[:, grid.group[first]] for one in (grid.scale, grid.zero))
    codes = (torch.round(alone / scale) + zero).clamp(0, 7)
    assert torch.equal(result.codes[:, first], codes.to(torch.uint8))


def test_has_a_lower_total_error_than_gptq_and_one_like_that_on_the_corrected_weight():
    totals = {"gptq": 0.0, "corrected": 0.0, "qronos": 0.0}
    for seed in range(10):
        weight, _, _, statistics = case(60, 48, 300, seed=seed)
        corrected = Propagation(alpha=1.0, damping=0.01).correct({"w": weight}, statistics)["w"]
        results = {
            "gptq": quantized(GPTQ(act_order=True), weight, statistics),
            "corrected": quantized(GPTQ(act_order=True), corrected.weight, statistics),
            "qronos": quantized(Qronos(), weight, statistics),
        }
        for name, one in results.items():
            totals[name] += statistics.total_error(weight, one.weight)
    assert totals["qronos"] < 0.9 * totals["gptq"]
    assert totals["qronos"] == pytest.approx(totals["corrected"], rel=0.05)


def test_without_a_mismatch_it_is_gptq():
    weight, inputs, _, _ = case(columns=40)
    statistics = collect(inputs, inputs, cross=True)
    for size in (None, 20):
        codes = quantized(Qronos(), weight, statistics, 3, size).codes
        assert torch.equal(
            codes, quantized(GPTQ(act_order=True), weight, statistics, 3, size).codes
        )


def test_dead_columns_are_zero_also_the_first():
    weight, inputs, reference, _ = case()
    for column in (0, 5):
        inputs[:, column] = reference[:, column] = 0
    for act_order in (False, True):
        result = quantized(
            Qronos(act_order=act_order), weight, collect(inputs, reference, cross=True)
        )
        assert (result.weight[:, [0, 5]] == 0).all() and result.weight.isfinite().all()


def test_it_asks_for_the_cross_moment():
    weight, inputs, *_ = case()
    assert Qronos.needs == {"cross"}
    with pytest.raises(ValueError, match="no cross moment"):
        quantized(Qronos(), weight, collect(inputs))
