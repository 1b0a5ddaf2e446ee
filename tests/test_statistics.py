import math

import pytest
import torch
from reference import damped, instance, moments

from harness import quantize_layer
from harness.numerics.cholesky import IndefiniteError, damped_cholesky
from harness.numerics.forms import Distance, forms
from harness.numerics.statistics import Accumulator, Statistics, collect


def test_moments_agree_with_outer_products():
    _, inputs, reference = instance(columns=17, tokens=50)
    statistics = collect(inputs.double(), reference.double(), cross=True, gap=True, magnitude=True)
    hessian, cross, gap = moments(inputs.double(), reference.double())
    torch.testing.assert_close(statistics.hessian, hessian, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(statistics.cross, cross, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(statistics.gap, gap, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(statistics.magnitude, inputs.double().abs().mean(dim=0))
    assert statistics.tokens == 50


def test_batches_add_up_and_panels_do_not_show():
    _, inputs, reference = instance(columns=530, tokens=64)
    whole = collect(inputs, reference, cross=True, gap=True)
    parts = Accumulator(530, cross=True, gap=True)
    for x, y in zip(inputs.split(20), reference.split(20), strict=True):
        parts.add(x[None], y[None])
    mean = parts.mean()
    for name in ("hessian", "cross", "gap"):
        torch.testing.assert_close(getattr(mean, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.hessian, inputs.T @ inputs / 64, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole.hessian, whole.hessian.T)


def test_errors_agree_with_direct_forwards():
    weight, inputs, reference = (t.double() for t in instance(tokens=90))
    quantized = weight + 0.1 * torch.randn_like(weight)
    statistics = collect(inputs, reference, cross=True, gap=True)
    local = ((weight - quantized) @ inputs.T).square().sum() / 90
    total = (weight @ reference.T - quantized @ inputs.T).square().sum() / 90
    assert statistics.local_error(weight, quantized) == pytest.approx(local.item(), rel=1e-10)
    assert statistics.total_error(weight, quantized) == pytest.approx(total.item(), rel=1e-10)
    single = collect(inputs.float(), reference.float(), cross=True, gap=True)
    measured = single.total_error(weight.float(), quantized.float())
    assert measured == pytest.approx(total.item(), rel=1e-4)  # terms cancel: looser than 1e-5


def quadratic_form(delta, moment):
    return forms([Distance(moment, delta)])[0][0]


def test_quadratic_form_over_panels():
    delta, root = torch.randn(2050, 600).double(), torch.randn(600, 600).double()
    moment = root @ root.T
    expected = torch.einsum("ij,jk,ik->", delta, moment, delta).item()
    assert quadratic_form(delta, moment) == pytest.approx(expected, rel=1e-10)


def test_damped_cholesky():
    _, inputs, _ = instance(columns=20)
    hessian = collect(inputs.double()).hessian
    hessian[3] = hessian[:, 3] = 0
    factor = damped_cholesky(hessian, 0.1)
    expected = damped(hessian, 0.1)
    torch.testing.assert_close(factor.lower @ factor.lower.T, expected, rtol=1e-10, atol=1e-12)
    assert factor.ridge == pytest.approx(0.1 * hessian.diagonal().mean().item())


def test_damping_is_raised_and_reported_or_refused():
    singular = torch.ones(8, 8)
    singular[0, 1] = singular[1, 0] = 1.0001
    assert damped_cholesky(singular, 0.0).ridge > 0
    with pytest.raises(IndefiniteError, match="stays indefinite"):
        damped_cholesky(torch.eye(4) - 2 * torch.ones(4, 4), 0.0)
    with pytest.raises(IndefiniteError, match="not finite"):
        damped_cholesky(torch.full((3, 3), torch.nan), 0.1)


def test_missing_statistics_are_named():
    bare = Statistics(torch.eye(3), 10)
    for call in (bare.require_cross, bare.require_magnitude):
        with pytest.raises(ValueError, match="hold no"):
            call()
    with pytest.raises(ValueError, match="gap moment"):
        bare.total_error(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="reference inputs"):
        Accumulator(3, cross=True).add(torch.ones(2, 3))


def test_merged_sums_equal_one_sum():
    inputs, reference = torch.randn(2, 60, 7, dtype=torch.float64)
    wanted = {"cross": True, "gap": True, "magnitude": True, "dtype": torch.float64}
    parts = [Accumulator(7, **wanted) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 25), slice(25, 60)), strict=True):
        part.add(inputs[rows], reference[rows])
    parts[0].merge(parts[1])
    merged, whole = (
        parts[0].mean(),
        collect(inputs, reference, cross=True, gap=True, magnitude=True),
    )
    assert merged.tokens == whole.tokens == 60
    for name in ("hessian", "cross", "gap", "magnitude", "reference_magnitude"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name))


def test_the_statistics_of_the_reference_stream_are_those_of_its_inputs():
    _, inputs, reference = instance(columns=17, tokens=50)
    inputs, reference = inputs.double(), reference.double()
    found = collect(inputs, reference, cross=True, gap=True, magnitude=True).of_reference()
    alone = collect(reference, magnitude=True)
    torch.testing.assert_close(found.hessian, alone.hessian, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.magnitude, alone.magnitude, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found.magnitude, collect(inputs, magnitude=True).magnitude)


def test_no_error_is_negative_and_nan_stays() -> None:
    """With inputs of rank one the error is far below what rounding leaves of a sum of large terms."""
    draw = torch.Generator().manual_seed(0)
    weight, column = torch.randn(24, 32, generator=draw), torch.randn(80, 1, generator=draw)
    inputs = column @ torch.randn(1, 32, generator=draw)
    found = quantize_layer(
        weight, inputs, method="quantease", bits=4, group_size=8, refit="scales"
    )  # -1e-4 by the plain sum, 4e-6 in truth
    errors = found.local_error, found.total_error, found.rounding_error
    assert all(0 <= one < 1e-3 for one in errors)
    nan = torch.full((1, 2), torch.nan)
    assert math.isnan(quadratic_form(nan, torch.eye(2)))
    assert quadratic_form(torch.ones(1, 2), -torch.eye(2)) == 0
