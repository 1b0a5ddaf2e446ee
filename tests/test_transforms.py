"""What is quantised in another basis, how it comes back, and what that costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bases import CHAINS, PLANS, operator
from grids import uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import instance

from harness.methods.gptaq import GPTAQ
from harness.methods.gptq import GPTQ
from harness.methods.qqa import QQA
from harness.methods.quantease import Outliers, QuantEase
from harness.methods.rtn import RTN
from harness.numerics.basis import Basis, Dense
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec
from harness.ranges.loss import Loss
from harness.recipe import Recipe, quantize_stage
from harness.transforms import awq, hadamard, orthogonal, rescale
from harness.transforms.base import find_bases


def stage(rows=(12, 20), columns=24, mismatch=0.3):
    weight, inputs, reference = (
        one.double() for one in instance(sum(rows), columns, 300, mismatch=mismatch)
    )
    inputs[:, 3] *= 20
    reference[:, 3] *= 20
    statistics = collect(inputs, reference, cross=True, gap=True, magnitude=True)
    parts = dict(zip(("a", "b"), weight.split(list(rows)), strict=True))
    return parts, statistics, inputs, reference


@pytest.mark.parametrize("transforms", PLANS, ids=lambda one: "+".join(map(repr, one.values())))
@pytest.mark.parametrize("method", [RTN(), GPTQ(damping=0.0), GPTAQ(strength=0.0)], ids=repr)
def test_weights_that_are_on_the_grid_come_back_as_they_were(transforms, method):
    """A lossless grid changes nothing: the weight is made of points of the grid in its basis."""
    weights, statistics, _, _ = stage()
    bases, turned, _ = find_bases(list(transforms.values()), weights, statistics, uniform(8))
    spec = GridSpec(uniform(8).form, uniform(8).range, given=None)
    for name in weights:
        on_grid = spec.fit(turned[name]).nearest(turned[name])
        exact = bases[name].back(on_grid)
        torch.testing.assert_close(bases[name].into(exact), on_grid, rtol=1e-6, atol=1e-9)
        found = method.quantize({name: bases[name].into(exact)}, statistics, spec)[name]
        torch.testing.assert_close(bases[name].back(found.weight), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("transforms", PLANS, ids=lambda one: "+".join(map(repr, one.values())))
def test_eight_bits_stay_close_in_every_basis(transforms):
    weights, statistics, _, _ = stage()
    recipe = Recipe(GPTQ(), uniform(8), transforms)
    for name, result in quantize_stage(
        dict.fromkeys(weights, recipe), weights, statistics
    ).items():
        relative = statistics.local_error(weights[name], result.weight)
        assert relative < 3e-4 * statistics.local_error(weights[name], 0 * weights[name])


@pytest.mark.parametrize("sides", ["input", "output", "both"])
@pytest.mark.parametrize("kind", [hadamard.Hadamard, orthogonal.Orthogonal])
def test_errors_are_the_same_in_the_old_and_the_new_basis(kind, sides):
    """Local and total errors, also where outputs are mixed: orthogonally, so that no length changes."""
    weights, statistics, _, _ = stage()
    bases, turned, moved = find_bases([kind(sides=sides)], weights, statistics, uniform(3))
    results = GPTQ().quantize(turned, moved, uniform(3))
    for name, weight in weights.items():
        value = bases[name].back(results[name].weight)
        for error in ("local_error", "total_error"):
            inside = getattr(moved, error)(turned[name], results[name].weight)
            outside = getattr(statistics, error)(weight, value)
            assert inside == pytest.approx(outside, rel=1e-9)


@pytest.mark.parametrize("transforms", [{"rescale": rescale.Rescale()}, {"awq": awq.AWQ()}])
def test_errors_are_the_same_under_scales_too(transforms):
    weights, statistics, _, _ = stage()
    bases, turned, moved = find_bases(list(transforms.values()), weights, statistics, uniform(3))
    value = RTN().quantize(turned, moved, uniform(3))["a"].weight
    for error in ("local_error", "total_error"):
        inside = getattr(moved, error)(turned["a"], value)
        outside = getattr(statistics, error)(weights["a"], bases["a"].back(value))
        assert inside == pytest.approx(outside, rel=1e-9)


METHODS = [RTN(), GPTQ(), GPTQ(act_order=True), GPTAQ(), QuantEase(iterations=3), QQA(steps=5)]


@pytest.mark.parametrize(
    "method", [*METHODS, QuantEase(iterations=3, outliers=Outliers(0.02))], ids=repr
)
@pytest.mark.parametrize("transforms", [PLANS[0], *CHAINS], ids=lambda one: "+".join(one))
def test_every_method_works_in_every_basis(method, transforms):
    weights, statistics, _, _ = stage()
    recipe = Recipe(method, uniform(3, 12), transforms)
    results = quantize_stage(dict.fromkeys(weights, recipe), weights, statistics)
    assert list(results) == list(weights)
    for name, result in results.items():
        dense = result.grid.dequantize(result.codes)
        dense = dense if result.outliers is None else dense + result.outliers
        torch.testing.assert_close(result.basis.back(dense), result.weight)
        assert result.storage == recipe.storage(*weights[name].shape)
        assert result.weight.shape == weights[name].shape and result.weight.is_contiguous()


def test_spread_outliers_are_worth_a_transform():
    weights, statistics, _, _ = stage()
    for weight in weights.values():
        weight[:, 7] *= 30
    errors = []
    for transforms in (
        {},
        {"hadamard": hadamard.Hadamard()},
        {"orthogonal": orthogonal.Orthogonal()},
    ):
        recipe = Recipe(GPTQ(), uniform(3), transforms)
        found = quantize_stage(dict.fromkeys(weights, recipe), weights, statistics)
        errors.append(sum(statistics.local_error(w, found[n].weight) for n, w in weights.items()))
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[0]


def test_linears_with_recipes_of_their_own_share_what_they_can():
    """One scale search for linears whose transforms and grids agree, others each by themselves."""
    weights, statistics, _, _ = stage(rows=(8, 8))
    weights["c"] = weights["a"] + 1
    same, other = (Recipe(method, uniform(3), {"awq": awq.AWQ()}) for method in (RTN(), GPTQ()))
    plain = Recipe(RTN(), uniform(4))
    results = quantize_stage({"a": same, "b": other, "c": plain}, weights, statistics)
    scales = [results[name].basis.inputs.parts[0].scale for name in "ab"]
    both = (
        awq.AWQ().find({name: weights[name] for name in "ab"}, statistics, uniform(3)).inputs.scale
    )
    assert torch.equal(scales[0], both) and torch.equal(scales[1], both)
    assert results["c"].basis == Basis() and results["c"].grid.codebook.bits == 4
    alone = quantize_stage({"a": same}, {"a": weights["a"]}, statistics)["a"]
    assert not torch.equal(alone.basis.inputs.parts[0].scale, both)


# What they cost


def test_the_online_cost_is_counted():
    """By hand: 576 = 64 · 9 = 24 · 24 channels; a product and a sum are two operations."""
    had, _ = operator(hadamard.Hadamard(), 576)
    assert had.flops() == 576 * 6 + 576 * 2 * 9 and had.bits() == 64
    assert operator(hadamard.Hadamard(), 64)[0].flops() == 64 * 6
    kron, _ = operator(orthogonal.Orthogonal(), 576)
    assert kron.flops() == 576 * 2 * (24 + 24) and kron.bits() == 64
    assert operator(orthogonal.Orthogonal(), 13)[0].flops() == 2 * 13 * 13
    assert Dense(torch.eye(10)).flops() == 200
    scale, _ = operator(rescale.Rescale(), 576)
    assert scale.flops() == 576 and scale.bits() == 16 * 576
    wide, _ = operator(rescale.Rescale(scales="float32"), 576)
    assert wide.bits() == 32 * 576
    basis = Basis().then(scale, None).then(had, kron)
    assert basis.flops() == 576 + had.flops() + kron.flops()
    assert basis.bits() == 16 * 576 + 64 + 64


@settings(max_examples=20, deadline=None)
@given(
    rows=st.sampled_from([6, 16]), columns=st.sampled_from([8, 24]), plan=st.sampled_from(PLANS)
)
def test_what_a_basis_takes_to_store_is_known_from_the_shape(rows, columns, plan):
    weight, inputs, _ = instance(rows, columns)
    recipe = Recipe(RTN(), uniform(3), plan)
    result = quantize_stage({"w": recipe}, {"w": weight}, collect(inputs, magnitude=True))["w"]
    assert result.storage == recipe.storage(rows, columns)
    assert (
        result.storage.other
        == result.basis.bits()
        == sum(one.bits(rows, columns) for one in plan.values())
    )
    assert recipe.flops(rows, columns) >= 0


def test_the_work_of_a_recipe_is_counted():
    """By hand for 8 output channels of 48 = 16 · 3 inputs."""
    plain = Recipe(GPTQ(), uniform(3))
    turned = Recipe(GPTQ(), uniform(3), {"hadamard": hadamard.Hadamard()})
    assert turned.flops(8, 48) - plain.flops(8, 48) == 2 * 48 * (4 + 4 + 3) * (2 * 8 + 2 * 48)
    both = Recipe(GPTQ(), uniform(3), {"orthogonal": orthogonal.Orthogonal(sides="both")})
    inputs, outputs = 2 * 48 * (6 + 8) * (2 * 8 + 2 * 48), 2 * 8 * (2 + 4) * 2 * 48
    assert both.flops(8, 48) - plain.flops(8, 48) == inputs + outputs
    refitted = [
        Recipe(GPTQ(), replace(uniform(3), refit=how)).flops(8, 48) for how in ("scales", "round")
    ]
    product = 2 * 8 * 48**2
    assert refitted[0] == plain.flops(8, 48) + 3 * product
    assert refitted[1] == 2 * plain.flops(8, 48) + 6 * product
    searched = Recipe(RTN(), uniform(3, 16, range=Loss()))
    assert searched.flops(8, 48) == 10 * 2 * 8 * 48 * 16


def test_scales_are_stored_in_the_type_that_is_counted():
    _, statistics = operator(rescale.Rescale(), 24)
    weights = {"w": torch.randn(4, 24, dtype=torch.float64)}
    for kind in (rescale.Rescale, awq.AWQ):
        narrow, wide = (
            kind(scales=s).find(weights, statistics, uniform(3)).inputs
            for s in ("float16", "float32")
        )
        assert torch.equal(narrow.scale, narrow.scale.half().double())
        assert not torch.equal(wide.scale, wide.scale.half().double())


def test_bad_options():
    for kind in (hadamard.Hadamard, orthogonal.Orthogonal):
        with pytest.raises(ValueError, match="sides='left': allowed are input, output, both"):
            kind(sides="left")
    with pytest.raises(ValueError, match="smallest=0: allowed are whole numbers from 1 up"):
        hadamard.Hadamard(smallest=0)
    with pytest.raises(ValueError, match="steps=0"):
        awq.AWQ(steps=0)
