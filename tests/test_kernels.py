import pytest
import torch
from grids import uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import instance

from harness.formats.fp4 import FP4
from harness.formats.int import Int
from harness.formats.nf4 import NF4
from harness.methods.gptaq import GPTAQ
from harness.methods.gptq import GPTQ, inverse_factor
from harness.methods.quantease import Outliers, QuantEase
from harness.numerics import kernels, twins
from harness.numerics.statistics import collect

SHAPES = [(1, 1), (37, 64), (64, 100), (150, 128)]  # rows, columns of one block
BOOK = Int(3).codebook
TABLES = [(NF4().codebook, 0.0), (FP4().codebook, 0.0)]
BOOKS = pytest.mark.parametrize(
    ("book", "zero"), [(BOOK, 3.0), *TABLES], ids=["int", "nf4", "fp4"]
)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# float32: sums of up to 128 terms in another order, amplified by 1/U_jj
CLOSE = {
    torch.float32: {"rtol": 1e-3, "atol": 1e-4},
    torch.float64: {"rtol": 1e-10, "atol": 1e-11},
}


def problem(rows, columns, groups=1, dtype=torch.float32, zero=3.0):
    weight, inputs, reference = instance(rows, columns, tokens=3 * columns + 10)
    statistics = collect(inputs, reference, cross=True)
    hessian = statistics.hessian + 0.01 * torch.eye(columns)
    factor, _ = inverse_factor(hessian, 0.01)
    carry = (0.3 * (statistics.cross @ factor.T).triu(1) @ factor).contiguous()
    grid = torch.rand(groups, rows, generator=torch.Generator().manual_seed(1)) + 0.2
    zero = torch.full_like(grid, zero)
    group = torch.arange(columns) * groups // columns
    tensors = (weight.T.contiguous(), hessian, factor, carry, grid, zero)
    return [t.to(dtype) for t in tensors] + [group]


def agree(left, right, dtype):
    """Equal codes; in float32 a row may part from a value on a rounding boundary on."""
    same = (left == right).float().mean().item()
    assert same >= (0.999 if dtype is torch.float32 else 1), same


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@PRECISIONS
@BOOKS
def test_gptq_block_agrees_with_its_twin(rows, columns, carried, groups, book, zero, dtype):
    weight, _, factor, carry, *grid = problem(rows, columns, groups, dtype, zero)
    carry = carry if carried else None
    fast, plain = weight.clone(), weight.clone()
    codes, error = kernels.gptq_block(fast, factor, *grid, book, carry)
    expected, reference = twins.gptq_block(plain, factor, *grid, book, carry)
    agree(codes, expected, dtype)
    rows_alike = (codes == expected).all(dim=0)
    close = CLOSE[dtype]
    torch.testing.assert_close(error[:, rows_alike], reference[:, rows_alike], **close)
    torch.testing.assert_close(fast[:, rows_alike], plain[:, rows_alike], **close)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("relax", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@PRECISIONS
@BOOKS
def test_quantease_block_agrees_with_its_twin(rows, columns, relax, groups, book, zero, dtype):
    weight, hessian, _, _, *grid = problem(rows, columns, groups, dtype, zero)
    gradient = (hessian @ (0.1 * weight.flip(0))).contiguous()
    fast, plain = weight.clone(), weight.clone()
    arguments = (gradient, hessian, *grid, book, relax)
    codes, step = kernels.quantease_block(fast, *arguments)
    expected, reference = twins.quantease_block(plain, *arguments)
    agree(codes, expected, dtype)
    rows_alike = (codes == expected).all(dim=0)
    close = CLOSE[dtype]
    torch.testing.assert_close(step[:, rows_alike], reference[:, rows_alike], **close)
    torch.testing.assert_close(fast[:, rows_alike], plain[:, rows_alike], **close)


def test_twins_are_exact_in_float64():
    """One column after the other by hand: w_k loses error_j U_jk and gains w_j P_jk."""
    weight, hessian, factor, carry, scale, zero, group = problem(5, 20, dtype=torch.float64)
    work, value = weight.clone(), torch.empty_like(weight)
    codes, error = twins.gptq_block(weight, factor, scale, zero, group, BOOK, carry)
    for j in range(20):
        for r in range(5):
            code = min(max(round((work[j, r] / scale[0, r]).item()) + 3, 0), 7)
            assert codes[j, r] == code
            value[j, r] = scale[0, r] * (code - 3)
        lost = (work[j] - value[j]) / factor[j, j]
        torch.testing.assert_close(error[j], lost, rtol=1e-10, atol=1e-12)
        for k in range(j + 1, 20):
            work[k] += carry[j, k] * work[j] - factor[j, k] * lost
    torch.testing.assert_close(weight, work, rtol=1e-10, atol=1e-12)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_are_shared_out_whole_and_in_order(rows, count, threads):
    threads(count)
    seen = kernels.map_rows(
        lambda chunk: (list(range(rows))[chunk], torch.get_num_threads()), torch.empty(rows, 3)
    )
    assert [row for part, _ in seen for row in part] == list(range(rows))
    assert len(seen) == min(count, -(-rows // kernels.LANES))
    assert len(seen) == 1 or {own for _, own in seen} == {1}
    assert torch.get_num_threads() == count


@pytest.mark.parametrize(
    "method",
    [
        GPTQ(),
        GPTAQ(act_order=True),
        QuantEase(iterations=4),
        QuantEase(iterations=4, keep="best", init="gptq"),
        QuantEase(iterations=4, outliers=Outliers(0.01)),
    ],
    ids=str,
)
@pytest.mark.parametrize("group", [None, 16])
def test_rows_on_threads_give_what_one_thread_gives(method, group, threads):
    weight, inputs, reference = instance(200, 48, tokens=200)
    weight, inputs, reference = weight.double(), inputs.double(), reference.double()
    statistics = collect(inputs, reference, cross=True)
    found = []
    for count in (1, 3):
        threads(count)
        found.append(method.quantize_rows(weight, statistics, uniform(3, group_size=group)))
    one, three = found
    assert (one.codes == three.codes).all()
    torch.testing.assert_close(one.weight, three.weight, rtol=1e-9, atol=1e-12)
    for name, curve in one.traces.items():
        torch.testing.assert_close(curve, three.traces[name], rtol=1e-6, atol=1e-9)


@settings(deadline=None)  # the first call compiles
@given(rows=st.integers(1, 40), columns=st.integers(1, 70), biased=st.booleans())
def test_squared_norms_equal_their_twin(rows, columns, biased):
    y, other = torch.randn(2, 1, rows, columns)
    bias = torch.randn(columns) if biased else None
    found = kernels.squared_norms(y, other, bias)
    torch.testing.assert_close(
        found, kernels.squared_norms_torch(y, other, bias), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("norms", [kernels.squared_norms, kernels.squared_norms_torch])
def test_tokens_without_a_signal_count_where_they_get_one(norms):
    y, other = torch.zeros(3, 2), torch.zeros(3, 2)
    y[0], other[0] = 2.0, 1.0
    assert norms(y, other, None).tolist() == [2.0, 8.0, 0.25]
    other[1, 0] = 1.0
    assert norms(y, other, None).tolist() == [3.0, 8.0, float("inf")]


def test_squared_norms_of_what_is_not_finite():
    y = torch.ones(3, 5)
    y[1, 2] = float("nan")
    error, signal, quotients = kernels.squared_norms(y, torch.ones(3, 5), None)
    assert error != error and signal != signal and quotients != quotients
    assert kernels.squared_norms(torch.full((2, 4), float("inf")), torch.ones(2, 4), None)[
        0
    ] == float("inf")
