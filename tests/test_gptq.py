import pytest
import torch
from grids import uniform
from reference import golden, gptq, instance

from harness.methods.gptq import GPTQ, inverse_factor
from harness.methods.rtn import RTN
from harness.numerics.statistics import collect

GOLDEN = ["s_seed111", "l_seed112", "s_seed113_dead", "multiblock_x_seed114"]


def quantized(method, weight, statistics, bits, size=None):
    return method.quantize({"w": weight}, statistics, uniform(bits, size))["w"]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [None, 20])
def test_agrees_with_column_by_column_least_squares(size, act_order):
    weight, inputs, _ = instance(rows=10, columns=160, tokens=600)
    statistics = collect(inputs)
    result = quantized(GPTQ(act_order=act_order), weight, statistics, 3, size)
    expected = gptq(weight, statistics.hessian, 3, group_size=size, act_order=act_order)
    assert ((result.weight - expected).abs() < 1e-4).float().mean() >= 0.999


def test_refit_fits_groups_to_the_updated_weights():
    weight, inputs, _ = instance(rows=10, columns=80, tokens=600)
    statistics = collect(inputs)
    result = quantized(GPTQ(fresh_groups=True), weight, statistics, 3, 20)
    expected = gptq(weight, statistics.hessian, 3, group_size=20, block=20)
    assert ((result.weight - expected).abs() < 1e-4).float().mean() >= 0.999


def test_static_groups_keep_the_grid_of_the_original_weight():
    weight, inputs, _ = instance(columns=160)
    spec = uniform(3, 40)
    method = GPTQ(static_groups=True, act_order=True)
    result = method.quantize({"w": weight}, collect(inputs), spec)["w"]
    grid = spec.fit(weight)
    assert torch.equal(result.grid.scale, grid.scale)
    assert torch.equal(result.grid.group, grid.group)


def test_white_inputs_make_it_round_to_nearest():
    weight, _, _ = instance(columns=150)
    statistics = collect(150**0.5 * torch.eye(150))
    result = quantized(GPTQ(), weight, statistics, 3)
    assert torch.equal(result.codes, quantized(RTN(), weight, statistics, 3).codes)


def test_beats_rounding_to_nearest():
    for seed in range(5):
        weight, inputs, _ = instance(seed=seed)
        statistics = collect(inputs)
        losses = [
            statistics.local_error(weight, quantized(method, weight, statistics, 3).weight)
            for method in (GPTQ(), RTN())
        ]
        assert losses[0] < losses[1]


def test_inverse_factor():
    _, inputs, _ = instance(columns=30)
    hessian = collect(inputs.double()).hessian
    factor, ridge = inverse_factor(hessian, 0.0)
    assert ridge == 0
    assert torch.equal(factor, factor.triu())
    inverse = torch.linalg.inv(hessian)
    torch.testing.assert_close(factor.T @ factor, inverse, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    arrays = golden(f"gptq_{name}")
    weight, inputs = arrays["W"], arrays["X"]
    statistics = collect(inputs)
    for key in [key for key in arrays if key.startswith("Q__")]:
        bits, size, act = (part for part in key.removeprefix("Q__").split("_"))
        result = quantized(
            GPTQ(act_order=act == "act1"), weight, statistics,
            int(bits[1:]), None if size == "g-1" else int(size[1:]),
        )  # fmt: skip
        assert ((result.weight - arrays[key]).abs() < 1e-5).float().mean() >= 0.999, key
        delta = (weight - arrays[key]).double() @ inputs.double().T
        expected = delta.square().sum().item() / len(inputs)
        loss = statistics.local_error(weight, result.weight)
        assert loss == pytest.approx(expected, rel=1e-3), key


def test_bad_options():
    with pytest.raises(ValueError, match="damping=-1: allowed"):
        GPTQ(damping=-1)
