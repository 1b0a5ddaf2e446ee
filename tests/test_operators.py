"""Changes of basis written out: inverses, duals, moments, and the matrices that they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from bases import EVERY, ORTHOGONAL, WIDTHS, matrix, operator
from grids import uniform
from reference import instance

from harness.numerics.basis import (
    Chain,
    Diagonal,
    Hadamard,
    Kronecker,
    hadamard_transform,
    transformed,
)
from harness.numerics.propagation import Propagation, correction
from harness.numerics.statistics import Statistics, collect
from harness.transforms import awq, rescale


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("transform", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_backward_undoes_forward_and_dual_is_its_transposed_inverse(transform, width, dtype):
    one, _ = operator(transform, width, dtype)
    a, x = (torch.randn(5, width, dtype=dtype) for _ in range(2))
    close = {"rtol": 1e-6 if dtype is torch.float64 else 1e-4, "atol": 1e-5}
    torch.testing.assert_close(one.backward(one.forward(a)), a, **close)
    # W' x' = W x for x' = T⁻ᵀ x
    torch.testing.assert_close(one.forward(a) @ one.dual(x).T, a @ x.T, **close)
    if type(transform) not in (rescale.Rescale, awq.AWQ):
        torch.testing.assert_close(one.dual(x), one.forward(x))


@pytest.mark.parametrize("width", WIDTHS[:5])
@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_moments_are_those_of_the_turned_activations(transform, width):
    one, _ = operator(transform, width)
    x, y = torch.randn(2, 60, width, dtype=torch.float64)
    wanted = {"cross": True, "gap": True, "magnitude": True}
    turned = collect(one.dual(x), one.dual(y), **wanted)
    moved = transformed(collect(x, y, **wanted), one)
    for name in ("hessian", "cross", "gap"):
        torch.testing.assert_close(getattr(moved, name), getattr(turned, name))
    expected = turned.magnitude if type(one) is Diagonal else turned.hessian.diagonal().sqrt()
    torch.testing.assert_close(moved.magnitude, expected)


@pytest.mark.parametrize("width", [2, 12, 60, 96])
@pytest.mark.parametrize("transform", ORTHOGONAL.values(), ids=repr)
def test_orthogonal_ones_keep_h_s_eigenvalues_and_mix_all_channels(transform, width):
    one, statistics = operator(transform, width)
    turn = matrix(one, width)
    torch.testing.assert_close(turn @ turn.T, torch.eye(width, dtype=torch.float64))
    moved = transformed(statistics, one)
    torch.testing.assert_close(
        *(torch.linalg.eigvalsh(one.hessian) for one in (moved, statistics)), rtol=1e-8, atol=1e-10
    )
    assert ((turn.abs() > 1e-9).sum(dim=1) == width).float().mean() > 0.95


@pytest.mark.parametrize("transform", ORTHOGONAL.values(), ids=repr)
def test_orthogonal_ones_keep_the_correction_of_qep(transform):
    """W* found in the new basis and turned back is W*, with any damping, also with K."""
    weight, inputs, reference = (one.double() for one in instance(20, 24))
    lost = torch.randn(len(inputs), 20, dtype=torch.float64)
    statistics = collect(inputs, reference, lost, cross=True)
    one, _ = operator(transform, 24)
    inside = collect(one.dual(inputs), one.dual(reference), lost, cross=True)
    for damping in (0.0, 0.1, 1.0):
        expected, _ = correction(weight, statistics, damping)
        found, _ = correction(one.forward(weight), inside, damping)
        torch.testing.assert_close(one.backward(found), expected, rtol=1e-6, atol=1e-9)


def test_the_hadamard_transform_is_the_product_with_hadamard_s_matrix():
    for power in range(9):
        m = 1 << power
        literal = torch.tensor(
            [[(-1.0) ** (i & j).bit_count() for j in range(m)] for i in range(m)],
            dtype=torch.float64,
        )
        a = torch.randn(3, 2, m, dtype=torch.float64)
        torch.testing.assert_close(hadamard_transform(a), a @ literal / math.sqrt(m))


def test_operators_are_the_matrices_that_they_say():
    small = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0].contiguous()
    signs = torch.tensor([1.0, -1, 1, 1, -1, 1, 1, 1, -1, -1, 1, 1], dtype=torch.float64)
    h4 = hadamard_transform(torch.eye(4, dtype=torch.float64)).contiguous()
    expected = torch.kron(small, h4) @ torch.diag(signs)
    torch.testing.assert_close(matrix(Hadamard(small, signs), 12), expected)
    other = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0].contiguous()
    order = torch.randperm(12)
    permutation = torch.eye(12, dtype=torch.float64)[order]
    expected = torch.kron(small, other) @ torch.diag(signs) @ permutation
    torch.testing.assert_close(matrix(Kronecker(small, other, order, signs), 12), expected)
    scale = torch.rand(12, dtype=torch.float64) + 0.5
    chain = Chain().then(Diagonal(scale)).then(None).then(Hadamard(small, signs))
    expected = torch.kron(small, h4) @ torch.diag(signs) @ torch.diag(scale)
    torch.testing.assert_close(matrix(chain, 12), expected)
    a = torch.randn(2, 12, dtype=torch.float64)
    torch.testing.assert_close(chain.backward(chain.forward(a)), a)
    torch.testing.assert_close(chain.dual(a), a @ torch.linalg.inv(expected))


@pytest.mark.parametrize("transform", ORTHOGONAL.values(), ids=repr)
def test_the_seed_decides(transform):
    first, again = (matrix(operator(transform, 48)[0], 48) for _ in range(2))
    assert torch.equal(first, again)
    kind = type(transform)
    other = matrix(operator(kind(seed=transform.seed + 1), 48)[0], 48)
    assert not torch.allclose(first, other)
    sides = kind(sides="both").find(
        {"w": torch.ones(48, 48)}, Statistics(torch.eye(48), 1), uniform(3)
    )
    assert not torch.allclose(
        matrix(sides.inputs, 48, torch.float32), matrix(sides.outputs["w"], 48, torch.float32)
    )


def test_rescale_balances_weights_and_activations():
    """s_j = (H_jj / ‖W_:,j‖²)^¼ leaves W s and x / s with columns of one size each, up to a factor."""
    weight, inputs, _ = (one.double() for one in instance(30, 24))
    statistics = collect(inputs)
    found = rescale.Rescale(scales="float32").find(
        {"a": weight[:10], "b": weight[10:]}, statistics, uniform(3)
    )
    scaled = found.inputs.forward(weight).square().sum(dim=0)
    moved = transformed(statistics, found.inputs).hessian.diagonal()
    ratio = scaled / moved
    torch.testing.assert_close(ratio, ratio[0].expand(24), rtol=1e-6, atol=0)


def test_k_is_left_behind():
    """It belongs to the outputs, and the correction that it serves is made before."""
    weight, inputs, reference = instance(8, 12)
    lost = torch.randn(len(inputs), 8)
    statistics = collect(inputs, reference, lost, cross=True)
    assert transformed(statistics, Diagonal(torch.ones(12))).residual is None
    corrected = Propagation(alpha=1.0, target="residual").correct(
        {"w": weight}, statistics, writers=["w"]
    )
    assert corrected["w"].target == "residual"
