"""What holds for every method: parametrised over the YAML files in conf/method."""

import importlib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from grids import uniform
from pydantic import TypeAdapter
from reference import instance
from torch.utils.flop_counter import FlopCounterMode

from harness.methods import gptq
from harness.numerics.propagation import Propagation
from harness.numerics.statistics import Statistics, collect

FILES = sorted((Path(__file__).parents[1] / "conf" / "method").glob("*.yaml"))
EXTRA = {"quantease": [{"outliers": {"fraction": 0.03}}, {"init": "gptq", "keep": "best"}]}
EXTRA["gptq"] = EXTRA["qronos"] = [{"act_order": True}]
EXTRA["gptaq"] = [{"act_order": True}, {"mode": "rescomp"}]
VARIANTS = [
    pytest.param(path, extra, id=path.stem + "+".join(["", *extra]))
    for path in FILES
    for extra in [{}, *EXTRA.get(path.stem, [])]
    if path.stem != "none"
]


def load(path, extra=None):
    options = yaml.safe_load(path.read_text()) | (extra or {})
    module, name = options.pop("_target_").rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    return TypeAdapter(kind).validate_python(options), options


def run(method, weight, size=None, alpha=0.5, bits=3):
    _, inputs, reference = instance(columns=weight.shape[1])
    statistics = collect(inputs, reference, cross=True, gap=True, magnitude=True)
    corrected = Propagation(alpha=alpha).correct({"w": weight}, statistics)["w"].weight
    return method.quantize({"w": corrected}, statistics, uniform(bits, size))["w"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_yaml_names_every_option_with_its_default(path):
    method, options = load(path)
    assert method == type(method)()
    assert set(options) == {field.name for field in fields(method)}
    assert type(method).__module__ == f"harness.methods.{path.stem}"


@pytest.mark.parametrize("size", [None, 20])
@pytest.mark.parametrize(("path", "extra"), VARIANTS)
def test_composes_with_qep_and_its_codes_round_trip(path, extra, size):
    method, _ = load(path, extra)
    weight, _, _ = instance()
    result = run(method, weight, size)
    assert result.weight.shape == result.codes.shape == weight.shape
    assert result.codes.dtype == torch.uint8
    assert result.codes.max() <= 7
    dense = result.grid.dequantize(result.codes)
    if result.outliers is not None:
        dense = dense + result.outliers
    assert torch.equal(dense, result.weight)
    assert 3 < result.bits_per_weight <= 3 + 35 / (size or 40) + 16 / 24 + 0.04 * 32


@pytest.mark.parametrize(("path", "extra"), VARIANTS)
def test_permuting_rows_permutes_the_result(path, extra):
    method, _ = load(path, extra)
    weight, _, _ = instance(rows=70)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    plain, permuted = run(method, weight), run(method, weight[order])
    same = (plain.codes[order] == permuted.codes).float().mean()
    assert same > 0.99  # sums in another order may tip a value on a rounding boundary


@pytest.mark.parametrize(("path", "extra"), VARIANTS)
def test_a_stage_is_its_linears(path, extra):
    """Each linear is quantised as if alone; only transforms find one basis for all that read an input."""
    method, _ = load(path, extra)
    weight, inputs, reference = instance(rows=50)
    statistics = collect(inputs, reference, cross=True)
    parts = {"a": weight[:20], "b": weight[20:]}
    together = method.quantize(parts, statistics, uniform(3))
    for name, part in parts.items():
        alone = method.quantize({name: part}, statistics, uniform(3))[name]
        assert (together[name].codes == alone.codes).float().mean() > 0.99  # as above
        assert {k: v.shape for k, v in together[name].traces.items()} == {
            k: v.shape for k, v in alone.traces.items()
        }


@pytest.mark.parametrize(("path", "extra"), VARIANTS)
def test_more_bits_are_closer(path, extra):
    method, _ = load(path, extra)
    weight, inputs, _ = instance()
    statistics = collect(inputs)
    errors = [
        statistics.local_error(weight, run(method, weight, alpha=0.0, bits=bits).weight)
        for bits in (2, 4, 8)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("path", "extra"), VARIANTS)
def test_symmetric_grids_hold_rows_of_one_sign(path, extra):
    """With eight bits nothing but a range that cuts weights off could cost a tenth of a percent."""
    method, _ = load(path, extra)
    weight, inputs, _ = instance()
    weight = weight.abs()
    weight[::2] *= -1
    statistics = collect(inputs, inputs, cross=True, magnitude=True)
    for size in (None, 20):
        spec = uniform(8, size, symmetric=True)
        result = method.quantize({"w": weight}, statistics, spec)["w"]
        signal = statistics.local_error(weight, torch.zeros_like(weight))
        assert statistics.local_error(weight, result.weight) < 1e-3 * signal


def test_the_public_function_knows_every_file():
    from harness import quantize_layer

    weight, inputs, reference = instance()
    for path in FILES:
        if path.stem != "none":
            layer = quantize_layer(
                weight, inputs, reference, method=path.stem, bits=4, alpha=0.5, damping=0.1
            )
            assert layer.local_error < 0.2 * layer.grid.codebook.bits * weight.square().sum()
    with pytest.raises(ValueError, match="did you mean 'gptq'"):
        quantize_layer(weight, inputs, method="gptqq")
    with pytest.raises(ValueError, match="method=none quantises nothing"):
        quantize_layer(weight, inputs, method="none")


def test_only_none_does_not_quantize():
    assert [path.stem for path in FILES if not load(path)[0].quantizes] == ["none"]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("path", "extra"), VARIANTS)
def test_weights_and_statistics_stay_the_caller_s(path, extra, transposed):
    """Uncorrected weights are the model's own memory, transposed where it stores them so."""
    method, _ = load(path, extra)
    weight, inputs, reference = instance(rows=8, columns=140)  # more than one block of 128
    if transposed:
        weight = weight.T.contiguous().T
    statistics = collect(inputs, reference, cross=True, gap=True, magnitude=True)
    moments = [statistics.hessian, statistics.cross, statistics.gap, statistics.magnitude]
    before = [one.clone() for one in (weight, *moments)]
    method.quantize({"w": weight}, statistics, uniform(3))
    for one, earlier in zip((weight, *moments), before, strict=True):
        assert torch.equal(one, earlier)


COUNTED = {  # what torch's counter has no entry for; factors and triangles as LAPACK counts them
    torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1],
    torch.ops.aten.linalg_cholesky_ex: lambda matrix, *_, **__: matrix[0] ** 3 / 3,
    torch.ops.aten.cholesky_solve: lambda right, left, *_, **__: 2 * left[0] ** 2 * right[1],
    torch.ops.aten.linalg_solve_triangular: lambda left, right, *_, **__: left[0] ** 3 / 3,
}


@pytest.mark.parametrize("rows", [64, 512])
@pytest.mark.parametrize(("path", "extra"), VARIANTS)
def test_its_operations_are_those_that_torch_counts(path, extra, rows, monkeypatch):
    """To a fifth: the loops inside of blocks of 128 columns are not counted, looks at the loss not stated."""

    def inverse(lower):  # the harness's products see zeros, so that they count twice
        return torch.linalg.solve_triangular(lower, torch.eye(len(lower)), upper=False)

    monkeypatch.setattr(gptq, "triangular_inverse", inverse)
    method, _ = load(path, extra | ({"steps": 40} if path.stem == "qqa" else {}))
    weight, inputs, reference = instance(rows, 1024, tokens=64)
    statistics = collect(inputs, reference, cross=True, magnitude=True)
    counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
    with counter:
        method.quantize_rows(weight, statistics, uniform(3))
    assert method.flops(rows, 1024) == pytest.approx(counter.get_total_flops(), rel=0.2)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem != "none"], ids=lambda p: p.stem
)
def test_the_ridge_that_it_took_is_told(path):
    """H has an eigenvalue of −2e-4: of what is tried in place of no damping, 1e-3 is the first above it."""
    factored = ("gptq", "gptaq", "qronos", "quip")
    weight, inputs, reference = instance(columns=8)
    indefinite = torch.ones(8, 8)
    indefinite[0, 1] = indefinite[1, 0] = 1.0002
    rough = Statistics(indefinite, 10, cross=torch.zeros(8, 8), magnitude=torch.ones(8))
    if path.stem in factored:
        taken = (
            load(path, {"damping": 0.0})[0].quantize({"w": weight}, rough, uniform(3))["w"].ridge
        )
        assert taken == pytest.approx(1e-3)
    found = collect(inputs, reference, cross=True, magnitude=True)
    method, options = load(path)
    damping = {"qqa": 0.01}.get(path.stem, options.get("damping", 0.0))  # that of GPTQ, its start
    taken = method.quantize({"w": weight}, found, uniform(3))["w"].ridge
    assert taken == pytest.approx(damping * found.hessian.diagonal().mean().item())
