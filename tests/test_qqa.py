import pytest
import torch
from grids import uniform
from reference import best_neighbours, instance

from harness.methods.gptq import GPTQ
from harness.methods.qqa import QQA, losses
from harness.methods.quantease import QuantEase
from harness.methods.rtn import RTN
from harness.numerics.statistics import collect

STARTS = {"rtn": RTN(), "gptq": GPTQ(), "quantease": QuantEase()}


def quantized(method, weight, statistics, bits=3, size=None):
    return method.quantize({"w": weight}, statistics, uniform(bits, size))["w"]


@pytest.mark.parametrize("start", ["rtn", "gptq", "quantease"])
@pytest.mark.parametrize("size", [None, 20])
def test_no_row_ends_worse_than_its_start_and_most_better(start, size):
    size = None if start == "quantease" else size
    weight, inputs, _ = instance(rows=60, columns=100, tokens=400)
    statistics = collect(inputs)
    before = losses(
        weight - quantized(STARTS[start], weight, statistics, 3, size).weight, statistics.hessian
    )
    result = quantized(QQA(start=start, steps=120), weight, statistics, 3, size)
    after = losses(weight - result.weight, statistics.hessian)
    assert (after <= before * (1 + 1e-5)).all()
    assert (after < before * (1 - 1e-4)).float().mean() > (0.2 if start == "quantease" else 0.8)


@pytest.mark.parametrize("instances", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_finds_the_best_of_all_neighbours_by_brute_force(instances):
    method = QQA(start="rtn", solutions=24, steps=40, rounds=3, temperature=1e-2, lr=0.1)
    reached = 0
    for seed in range(instances):
        weight, inputs, _ = instance(rows=1, columns=10, tokens=60, seed=seed)
        statistics = collect(inputs)
        result = quantized(method, weight, statistics)
        scale, zero = result.grid.scale[0, 0], result.grid.zero[0, 0]
        best = best_neighbours(weight[0], statistics.hessian, scale, zero, 7)
        reached += statistics.local_error(weight, result.weight) <= best * (1 + 1e-4)
    assert reached >= 0.95 * instances


@pytest.mark.parametrize(("curve", "diversity"), [(2, 0.0), (4, 0.0), (4, 0.3)])
def test_gradient_agrees_with_automatic_differentiation(curve, diversity):
    weight, inputs, _ = instance(rows=3, columns=8)
    hessian = collect(inputs.double()).hessian
    delta = 0.3 * weight.double()
    step = torch.where(weight > 0, 0.4, -0.4).double()
    relaxed = torch.rand(4, 3, 8, dtype=torch.float64, requires_grad=True)
    curvature = step.square() * hessian.diagonal()
    unit = -2 / (step * hessian.diagonal())
    method = QQA(solutions=4, curve=curve, diversity=diversity)
    found, traces = method.gradient(relaxed.detach(), delta, step, hessian, unit, gamma=0.7)
    penalty = 1 - (1 - 2 * relaxed) ** curve
    std = relaxed.std(dim=0, correction=0)
    loss = losses(delta - step * relaxed, hessian)
    total = loss.sum() + 0.7 * (curvature * penalty).sum() - diversity * (curvature * std).sum()
    total.backward()
    torch.testing.assert_close(found * curvature, relaxed.grad, rtol=1e-8, atol=1e-10)
    expected = torch.stack([loss.mean(0), penalty.sum(2).mean(0), std.sum(1)])
    torch.testing.assert_close(traces, expected.detach())


def test_chunks_do_not_show(monkeypatch):
    weight, inputs, _ = instance(rows=50)
    statistics = collect(inputs)
    whole = quantized(QQA(steps=30, rounds=2), weight, statistics)
    monkeypatch.setattr("harness.methods.qqa.CHUNK", 7 * 2 * 40)
    parts = quantized(QQA(steps=30, rounds=2), weight, statistics)
    assert (whole.codes == parts.codes).float().mean() > 0.99
    assert whole.traces["loss"].shape == parts.traces["loss"].shape == (60, 50)


def test_penalty_falls_to_binary_and_the_seed_decides():
    weight, inputs, _ = instance(rows=50)
    statistics = collect(inputs)
    first, again, other = (
        quantized(QQA(steps=150, gamma_min=-0.5, gamma_max=2.0, seed=seed), weight, statistics)
        for seed in (0, 0, 1)
    )
    penalty = first.traces["penalty"].sum(dim=1)
    assert penalty[-1] < 0.1 * penalty.max()
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.traces["loss"], other.traces["loss"])


def test_dead_columns_and_full_range_codes_stay_valid():
    weight, inputs, _ = instance()
    inputs[:, 4] = 0
    statistics = collect(inputs)
    result = quantized(QQA(rounds=2), weight, statistics, bits=2)
    assert result.weight.isfinite().all()
    assert result.codes.max() <= 3


def test_bad_options_are_all_named():
    bad = {
        "start": "x", "solutions": 0, "steps": 0, "rounds": 0, "gamma_min": float("inf"),
        "gamma_max": -5.0, "curve": 3, "temperature": -1, "diversity": -1, "lr": 0, "spread": 2,
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:
        QQA(**bad)
    for name in bad:
        assert f"{name}=" in str(caught.value)
