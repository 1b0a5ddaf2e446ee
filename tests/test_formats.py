"""Number formats: against compressed-tensors where its rules are the same, and against the specifications."""

from __future__ import annotations

import math

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, fake_quantize
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import instance, nearest

from harness.formats.base import LEAST_HALF
from harness.formats.fp4 import E2M1, FP4
from harness.formats.gauss import Gauss, normal_levels
from harness.formats.int import Int
from harness.formats.midrise import MidRise
from harness.formats.mxfp4 import MXFP4
from harness.formats.nf4 import NF4
from harness.formats.nvfp4 import NVFP4
from harness.methods.gptq import GPTQ
from harness.methods.quantease import QuantEase
from harness.methods.rtn import RTN
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax

ALL = [
    Int(3),
    Int(4, symmetric=True),
    Int(8),
    NF4(),
    FP4(),
    MXFP4(),
    NVFP4(),
    MidRise(2),
    Gauss(3),
]
HALVES = [Int(3), Int(4, symmetric=True), Int(8), NF4(), FP4(), MidRise(3)]
FORMATS = pytest.mark.parametrize("form", ALL, ids=repr)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def spec(form, size=32):
    return GridSpec(form, MinMax(), form.group or size)


def weights(rows=8, columns=96, seed=0, dtype=torch.float32):
    """Rows of both signs, heavy tails, one sign, a constant, zero and next to nothing."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    weight[1] = weight[1] ** 3
    weight[2].abs_()
    weight[3] = weight[3, 0]
    weight[4] = 0
    weight[5] *= 1e-6
    return weight


# Rounding


@PRECISIONS
def test_every_tie_of_e2m1_goes_to_the_even_mantissa(dtype):
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=dtype)
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    book, one = FP4().codebook, torch.ones((), dtype=dtype)
    for sign in (1, -1):
        value = book.decode(book.encode(sign * ties, one, 0 * one), one, 0 * one)
        assert value.tolist() == [sign * v for v in even]
        assert FP4_E2M1_DATA.cast_to_fp4(sign * ties.float()).tolist() == value.tolist()
        for apart, side in ((1e-6, 1), (-1e-6, -1)):  # and just beside it to the nearest
            beside = book.encode(ties * (1 + apart), one, 0 * one).int()
            neighbours = torch.bucketize(ties.double(), book.table)
            assert torch.equal(beside, (neighbours if side == 1 else neighbours - 1).int())


@PRECISIONS
def test_e2m1_is_rounded_as_compressed_tensors_does(dtype):
    x = torch.cat([torch.linspace(-7, 7, 2001), torch.randn(2000), torch.tensor(E2M1)])
    x = torch.cat([x, torch.nextafter(x, torch.tensor(9.0))])
    book, one = FP4().codebook, torch.ones((), dtype=dtype)
    mine = book.decode(book.encode(x.to(dtype), one, 0 * one), one, 0 * one)
    assert torch.equal(mine.float(), FP4_E2M1_DATA.cast_to_fp4(x.clone()))


@PRECISIONS
@pytest.mark.parametrize("form", [NF4("float32"), FP4("float32"), MidRise(3, "float32")], ids=repr)
def test_a_weight_goes_to_the_nearest_value_of_a_table(form, dtype):
    weight = weights(dtype=dtype)
    grid = spec(form).fit(weight)
    value, scale = grid.nearest(weight), grid.expanded()[0].double()
    for i in range(len(weight)):
        for j in range(0, weight.shape[1], 5):
            points = [scale[i, j].item() * t for t in grid.codebook.table.tolist()]
            expected = nearest(weight[i, j].item(), points)
            assert value[i, j].item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@FORMATS
@PRECISIONS
def test_the_value_of_a_code_comes_back_as_that_code(form, dtype):
    grid = spec(form).fit(weights(columns=64, dtype=dtype))
    codes = torch.randint(0, grid.codebook.top + 1, (8, 64)).to(torch.uint8)
    assert torch.equal(grid.quantize(grid.dequantize(codes)), codes)
    assert 2 ** (form.bits - 1) <= grid.codebook.top < 2**form.bits


def test_nf4_has_the_values_of_qlora():
    """The 16 quantiles of arXiv 2305.14314, appendix E, by the construction it describes."""
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083  # 1 − ½ (1/32 + 1/30)
    upper = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    expected = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper.flip(0)])
    expected = expected / expected.max()
    torch.testing.assert_close(NF4().codebook.table, expected, rtol=0, atol=2e-6)


def test_midrise_is_quip_s_grid():
    assert MidRise(2).codebook.table.tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    grid = spec(MidRise(2, "float32"), 4).fit(torch.tensor([[3.0, -1.0, 0.4, -0.4]]))
    assert grid.nearest(torch.tensor([[9.0, -0.2, 0.2, -5.0]])).tolist() == [[3, -1, 1, -3]]


# Scales


@settings(max_examples=60, deadline=None)
@given(form=st.sampled_from(HALVES), seed=st.integers(0, 1000), power=st.floats(-12, 3))
def test_scales_are_float16_and_hold_their_range(form, seed, power):
    """Also those of tiny groups: where float16 has few digits left, scales are rounded up."""
    weight = weights(seed=seed) * 10**power
    grid = spec(form).fit(weight)
    assert torch.equal(grid.scale, grid.scale.half().float())
    assert (grid.scale >= LEAST_HALF).all() and grid.codebook.scale_bits == 16
    table, scale = grid.codebook.table, grid.expanded()[0]
    step, last = (1.0, grid.codebook.top) if table is None else (table.diff().max(), table.max())
    at_the_ends = last * 2.0**-11  # where a normal scale is rounded down
    assert (
        (grid.nearest(weight) - weight).abs() <= (step / 2 + at_the_ends) * scale * 1.001
    ).all()


def test_codes_are_made_on_the_scales_that_are_stored():
    """A scale of 1/7 is 0.14282 in float16: 100 steps of it are another code than 100 of 1/7."""
    weight = torch.tensor([[0.0, 255 / 7, 100.4999 / 7, 50.0 / 7]])
    narrow, wide = (spec(Int(8, scales=kind), 4).fit(weight) for kind in ("float16", "float32"))
    assert narrow.scale.item() == torch.tensor(1 / 7).half().item() != wide.scale.item()
    assert narrow.quantize(weight)[0, 2] == round(100.4999 / 7 / narrow.scale.item()) == 101
    assert wide.quantize(weight)[0, 2] == 100


def test_a_scale_beyond_float16_is_one_line():
    weight = torch.zeros(1, 32)
    weight[0, :2] = torch.tensor([1e6, -3.0])
    for form in (Int(3), FP4(), MidRise(3)):
        with pytest.raises(ValueError, match=r"scales=float16: a scale of .* is beyond 65504"):
            spec(form).fit(weight)
    for form in (Int(3, scales="float32"), NF4("float32"), MXFP4(), NVFP4()):
        assert spec(form).fit(weight).nearest(weight)[0, 0] == pytest.approx(1e6, rel=0.3)


@FORMATS
@PRECISIONS
def test_groups_of_zeros_and_of_next_to_nothing(form, dtype):
    weight = torch.zeros(4, 64, dtype=dtype)
    weight[1] = torch.finfo(torch.float32).smallest_normal / 64  # subnormal
    weight[2] = torch.linspace(-1e-30, 1e-30, 64)
    weight[3, 40] = 1.0
    grid = spec(form).fit(weight)
    value = grid.nearest(weight)
    assert value.isfinite().all() and (grid.scale > 0).all()
    if not isinstance(form, MidRise):  # which has no zero: half a step is its least value
        assert (value[0] == 0).all() and (value[3, :32] == 0).all()
        assert (value[:3].abs() <= 1e-6).all()


# Block formats


def args(**options):
    return QuantizationArgs(**options)


def test_mxfp4_takes_powers_of_two_as_the_specification_says():
    """OCP MX v1.0, 6.3: 2^(⌊log₂ max|w|⌋ − 2), also where max|w| is a power of two or next to one."""
    exact = torch.tensor([2.0**k for k in range(-120, 120)])
    largest = torch.cat(
        [exact, torch.nextafter(exact, 0 * exact), torch.nextafter(exact, 2 * exact)]
    )
    largest = torch.cat([largest, torch.rand(500) * 10, torch.tensor([1e-45, 1e-39, 3e38])])
    weight = torch.zeros(len(largest), 32)
    weight[:, 7] = -largest
    for one in (weight, weight.double()):
        scale = spec(MXFP4()).fit(one).scale[:, 0]
        for found, value in zip(scale.tolist(), largest.tolist(), strict=True):
            exponent = math.frexp(value)[1] - 1 - 2
            assert found == 2.0 ** min(max(exponent, -127), 127)


def test_mxfp4_is_that_of_compressed_tensors_where_its_rule_agrees():
    """It goes up to the next power of two from 1.75 on; below it follows the specification."""
    weight = weights(64, 96)
    grid = spec(MXFP4()).fit(weight)
    groups = weight.reshape(64, 3, 32)
    largest = groups.abs().amax(dim=2)
    alike = (torch.frexp(largest).mantissa * 2 < 1.75) & (largest > 0)
    exponents = generate_mx_scales(largest, 4) - 127
    assert torch.equal(grid.scale[alike], torch.exp2(exponents)[alike])
    assert torch.equal(
        2 * grid.scale[~alike & (largest > 0)], torch.exp2(exponents)[~alike & (largest > 0)]
    )
    options = args(
        num_bits=4, type="float", strategy="group", group_size=32, scale_dtype=torch.uint8
    )
    theirs = fake_quantize(weight, grid.scale, torch.zeros_like(grid.scale), options)
    assert torch.equal(grid.nearest(weight), theirs)


def test_nvfp4_is_that_of_compressed_tensors():
    weight = weights(64, 96)
    grid = spec(NVFP4()).fit(weight)
    options = args(
        num_bits=4, type="float", strategy="tensor_group", group_size=16,
        scale_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    groups = weight.reshape(64, 6, 16)
    whole = generate_gparam(weight.min(), weight.max())
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), options, global_scale=whole)
    usable = (
        groups.abs().amax(2) * whole / 6 > 2.0**-9
    )  # below it they take 0.125, which rounds all to 0
    torch.testing.assert_close((scale / whole)[usable], grid.scale[usable], rtol=1e-6, atol=0)
    theirs = fake_quantize(weight, scale, zero, options, global_scale=whole)
    mine = grid.nearest(weight)
    within = usable.repeat_interleave(16, dim=1)
    torch.testing.assert_close(mine[within], theirs[within], rtol=1e-6, atol=0)
    assert (mine - weight).norm() <= (theirs - weight).norm() * (1 + 1e-6)
    assert grid.codebook.tensor_bits == 32 and grid.codebook.scale_bits == 8


def test_nvfp4_takes_its_tensor_scale_once_and_from_each_linear():
    weight = weights(8, 64)
    form = NVFP4().of_weight(weight)
    assert form.tensor == pytest.approx(weight.abs().max().item() / (6 * 448), rel=1e-6)
    assert form.of_weight(100 * weight) is form
    statistics = collect(torch.randn(200, 64))
    parts = {"a": weight, "b": 100 * weight}
    for method in (RTN(), GPTQ(), QuantEase(iterations=2)):
        both = method.quantize(parts, statistics, spec(NVFP4()))
        for name, part in parts.items():
            alone = method.quantize({name: part}, statistics, spec(NVFP4()))[name]
            assert torch.equal(both[name].weight, alone.weight)
    with pytest.raises(ValueError, match="takes a scale from the whole weight"):
        NVFP4().stored(torch.ones(3))


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (8, True), (4, False), (8, False)])
def test_integers_are_those_of_compressed_tensors(bits, symmetric):
    """Up to ties: it adds the zero before it rounds."""
    weight = weights(64, 96)
    weight = weight[weight.abs().amax(dim=1) > 0]
    grid = spec(Int(bits, symmetric, "float32")).fit(weight)
    groups = weight.reshape(len(weight), 3, 32)
    options = args(num_bits=bits, type="int", strategy="group", group_size=32, symmetric=symmetric)
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), options)
    torch.testing.assert_close(grid.scale, scale, rtol=1e-6, atol=0)
    assert torch.equal(grid.zero - 2 ** (bits - 1), zero.float())
    theirs = fake_quantize(weight, scale, zero, options)
    same = (grid.nearest(weight) - theirs).abs() <= 1e-6 * weight.abs().max()
    assert same.float().mean() > 0.999


# What methods make of them


@FORMATS
@pytest.mark.parametrize("method", [RTN(), GPTQ(), QuantEase(iterations=4)], ids=repr)
def test_every_method_rounds_to_the_values_of_the_format(form, method):
    weight, inputs, _ = instance(rows=20, columns=64)
    statistics = collect(inputs)
    result = method.quantize({"w": weight}, statistics, spec(form))["w"]
    assert torch.equal(result.weight, result.grid.dequantize(result.codes))
    assert result.codes.max() <= result.grid.codebook.top
    if type(method) is not RTN:
        rounded = RTN().quantize({"w": weight}, statistics, spec(form))["w"]
        losses = [statistics.local_error(weight, one.weight) for one in (result, rounded)]
        assert losses[0] < losses[1]


def test_what_a_format_prescribes_is_said():
    with pytest.raises(ValueError, match="group_size=64: format=mxfp4 has groups of 32"):
        GridSpec(MXFP4(), MinMax(), 64)
    with pytest.raises(ValueError, match="group_size=None: format=nvfp4 has groups of 16"):
        GridSpec(NVFP4(), MinMax())


# Max 1960, table I: output levels and mean square error for a normal distribution.
MAX = {
    2: ([0.4528, 1.510], 0.1175),
    3: ([0.2451, 0.7560, 1.344, 2.152], 0.03454),
    4: ([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], 0.009497),
}


@pytest.mark.parametrize("bits", MAX)
def test_the_normal_levels_are_max_s(bits: int) -> None:
    upper, error = MAX[bits]
    levels = normal_levels(bits)
    assert levels.tolist() == pytest.approx([*(-one for one in reversed(upper)), *upper], abs=6e-4)
    draws = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = torch.from_numpy(levels)
    nearest = table[(draws[:, None] - table).abs().argmin(dim=1)]
    assert (draws - nearest).square().mean().item() == pytest.approx(error, rel=0.01)
    codebook = Gauss(bits).codebook
    assert codebook.table is not None and codebook.table[-1] == 1 == -codebook.table[0]
