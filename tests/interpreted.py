"""Triton's kernels in Triton's interpreter, on the CPU: equal to their twins in every bit.

Run by tests/test_gpu_kernels.py in a process of its own: that they are interpreted is settled when triton is
first imported (TRITON_INTERPRET=1). A column takes some 20 ms here, so that shapes are small.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import triton
import triton.language as tl
from grids import uniform
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import instance

from harness.formats.fp4 import FP4
from harness.formats.gauss import Gauss
from harness.formats.int import Int
from harness.formats.midrise import MidRise
from harness.formats.mxfp4 import MXFP4
from harness.formats.nf4 import NF4
from harness.formats.nvfp4 import NVFP4
from harness.methods.gptaq import GPTAQ
from harness.methods.gptq import GPTQ
from harness.methods.qronos import Qronos
from harness.methods.quantease import Outliers, QuantEase
from harness.numerics import twins
from harness.numerics.gpu import launch, search
from harness.numerics.statistics import collect
from harness.ranges.base import extremes
from harness.ranges.mse import MSE

ALL = [
    Int(3),
    Int(4, symmetric=True),
    Int(8),
    NF4(),
    FP4(),
    MXFP4(),
    NVFP4(),
    MidRise(2),
    Gauss(8),
]
FORMATS = pytest.mark.parametrize("form", ALL, ids=repr)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
METHODS = [
    GPTQ(),
    GPTAQ(act_order=True, strength=1.0),
    GPTAQ(mode="rescomp"),
    Qronos(),
    QuantEase(iterations=3),
    QuantEase(iterations=2, outliers=Outliers(0.05)),
]
SHAPES = {"rows": st.integers(1, 40), "columns": st.integers(1, 12), "groups": st.integers(1, 3)}
few = settings(max_examples=2, deadline=None, derandomize=True)
WORDS = {1: torch.uint8, 4: torch.int32, 8: torch.int64}


def same(mine, theirs):
    """In every bit: signs of zeros and what NaN carries included."""
    return all(
        a.dtype == b.dtype and torch.equal(a.view(WORDS[a.itemsize]), b.view(WORDS[b.itemsize]))
        for a, b in zip(mine, theirs, strict=True)
    )


def problem(form, rows, columns, groups, dtype=torch.float32):
    """Weights, U, P, H, scales, zeros and groups; some weights are what breaks arithmetic."""
    draw = torch.Generator().manual_seed(rows * 1000 + columns)

    def normal(*shape):
        return torch.randn(shape, generator=draw).to(dtype)

    weight, factor = normal(columns, rows), 0.2 * normal(columns, columns).triu(1)
    factor.diagonal().copy_(0.5 + normal(columns).abs())
    for i, odd in enumerate((-0.0, float("nan"), float("inf"), 1e30, 1e-42, 0.0)):
        weight.view(-1)[(7 * i + 3) % weight.numel()] = odd
    scale = 0.2 + 0.3 * normal(groups, rows).abs()
    table = form.codebook.table is not None
    zero = torch.full_like(scale, 0 if table else form.codebook.top // 2)
    group = torch.arange(columns) * groups // columns
    carry = 0.1 * normal(columns, columns).triu(1)
    return weight, factor, carry, factor.T @ factor, (scale, zero, group, form.codebook)


def gptq_is_equal(form, rows, columns, groups, carried, dtype=torch.float32):
    weight, factor, carry, _, grid = problem(form, rows, columns, groups, dtype)
    found = []
    for module in (launch, twins):
        work = weight.clone()
        given = (work, factor, *grid, carry if carried else None)
        found.append((*module.gptq_block(*given), work))
    assert same(*found)


def quantease_is_equal(form, rows, columns, groups, relax, dtype=torch.float32):
    weight, _, _, hessian, grid = problem(form, rows, columns, groups, dtype)
    gradient = hessian @ (0.1 * weight.flip(0)).nan_to_num(0, 1, -1)
    found = []
    for module in (launch, twins):
        current = weight.clone()
        given = (current, gradient, hessian, *grid, relax)
        found.append((*module.quantease_block(*given), current))
    assert same(*found)


def search_is_equal(form, rows, size, tried=11, norm=2.4):
    weight = torch.randn(rows, size, generator=torch.Generator().manual_seed(size)) ** 3
    weight[0] = 0  # all grids tie
    form = form.of_weight(weight)
    shrink = 1 - torch.arange(tried) / (tried + 2)
    grids = form.bounded(*(shrink[:, None] * end for end in extremes(weight)))
    weight[-1, -1] = float("nan")
    found = [
        (module.least_error(weight, *grids, form.codebook, norm),) for module in (launch, twins)
    ]
    assert same(*found)
    assert found[0][0][0] == 0 and found[0][0][-1] == 0


@FORMATS
@few
@given(**SHAPES, carried=st.booleans())
@example(rows=17, columns=5, groups=2, carried=True)
def test_gptq(form, rows, columns, groups, carried):
    gptq_is_equal(form, rows, columns, groups, carried)


@FORMATS
@few
@given(**SHAPES, relax=st.booleans())
@example(rows=17, columns=5, groups=2, relax=False)
def test_quantease(form, rows, columns, groups, relax):
    quantease_is_equal(form, rows, columns, groups, relax)


@FORMATS
def test_ties_go_where_the_twin_sends_them(form):
    """Every weight half way between two values, and the next ones to it."""
    book = form.codebook
    middle = torch.arange(book.top + 1) - 0.5 if book.table is None else book.edges(torch.empty(0))
    apart = [torch.nextafter(middle, torch.tensor(way)) for way in (-torch.inf, torch.inf)]
    weight = torch.cat([middle, *apart])[None]
    one, factor, group = (
        torch.ones_like(weight),
        torch.ones(1, 1),
        torch.zeros(1, dtype=torch.int64),
    )
    grid = (one, torch.zeros_like(one), group, book)
    assert same(*(module.gptq_block(weight, factor, *grid) for module in (launch, twins)))


@triton.jit
def parts(
    terms, powers, sums, norm, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    at = r[:, None] * COLUMNS + c[None, :]
    one = search.power(tl.load(terms + at), norm)
    tl.store(powers + at, one)
    tl.store(sums + r, search.ordered_sum(one, DEPTH))


@pytest.mark.parametrize("depth", [0, 3, 7])
def test_powers_and_sums(depth):
    """What the search chooses by, which a choice alone would seldom betray."""
    terms = torch.randn(4, 2**depth, generator=torch.Generator().manual_seed(depth)).abs()
    terms[0, 0], terms[1, 0], terms[2, 0] = 0.0, 1e-42, float("inf")
    for norm in (0.3, 2.4):
        powers, sums = torch.empty_like(terms), torch.empty(4)
        parts[(1,)](terms, powers, sums, norm, ROWS=4, COLUMNS=2**depth, DEPTH=depth)
        expected = twins.power(terms, norm)
        assert same((powers, sums), (expected, twins.ordered_sum(expected)))


@FORMATS
def test_search(form):
    search_is_equal(form, 2, 16)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 3),
    size=st.integers(1, 300),
    tried=st.integers(1, 20),
    norm=st.floats(0.5, 6, width=32),
)
def test_search_of_any_shape(rows, size, tried, norm):
    search_is_equal(Int(3), rows, size, tried, norm)


@PRECISIONS
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_whole_methods(method, dtype):
    """With groups and the range search, in blocks that are parts of larger tensors."""
    weight, inputs, reference = (one.to(dtype) for one in instance(5, 12, tokens=60))
    statistics = collect(inputs, reference, cross=True)
    spec = uniform(3, group_size=6, range=MSE(steps=5))
    found = []
    for module in (launch, twins):
        with (
            patch("harness.methods.gptq.gptq_block", module.gptq_block),
            patch("harness.methods.quantease.quantease_block", module.quantease_block),
            patch("harness.ranges.mse.least_error", module.least_error),
        ):
            if dtype is torch.float64:
                spec = uniform(3, group_size=6)  # the search has no kernel for it
            found.append(method.quantize_rows(weight, statistics, spec))
    one, other = found
    assert same(*((f.codes, f.weight, f.grid.scale, f.grid.zero) for f in (one, other)))
    assert one.codes.unique().numel() > 2


@pytest.mark.long
@PRECISIONS
@pytest.mark.parametrize("form", [Int(3), Gauss(8)], ids=repr)
def test_blocks_of_128_columns(form, dtype):
    gptq_is_equal(form, 17, 128, 4, True, dtype)
    quantease_is_equal(form, 17, 128, 4, False, dtype)


@pytest.mark.long
@settings(max_examples=10, deadline=None)
@given(
    form=st.sampled_from(ALL),
    rows=st.integers(1, 40),
    columns=st.integers(1, 128),
    groups=st.integers(1, 8),
    switch=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_blocks_of_any_shape(form, rows, columns, groups, switch, dtype):
    gptq_is_equal(form, rows, columns, groups, switch, dtype)
    quantease_is_equal(form, rows, columns, groups, switch, dtype)


def test_blocks_that_no_kernel_can_take_are_refused():
    weight, factor, _, _, grid = problem(Int(3), 2, 3, 1)
    with pytest.raises(ValueError, match=r"strides \(1, 3\): it has to be contiguous"):
        launch.gptq_block(weight.T.contiguous().T, factor, *grid)
    with pytest.raises(TypeError, match=r"torch.bfloat16: allowed are float32 and float64"):
        launch.gptq_block(weight.bfloat16(), factor, *grid)
