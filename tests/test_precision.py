"""Runs in float64: figures that no order of summation moves, and so equal to a literal twin's."""

from __future__ import annotations

from pathlib import Path

import blockwise
import numpy as np
import pytest
import torch
from families import FAMILIES, build
from grids import uniform
from reference import instance
from runs import CONF, do
from test_methods_all import VARIANTS, load
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from harness import quantize_layer
from harness.command.cli import plan_jobs
from harness.inputs.models import HubModel
from harness.numerics.precision import arithmetic, forwards
from harness.numerics.statistics import collect
from harness.records.record import Record

pytestmark = pytest.mark.long  # whole runs, or every composition


@pytest.fixture
def ids(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Random tokens, also in the file ``ids.npz``."""
    draw = np.random.default_rng(0)
    shapes = {"calibration": (8, 16), "evaluation": (4, 16)}
    arrays = {name: draw.integers(4, 60, shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "ids.npz", **arrays)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def measured(folder: Path, place: Path, *more: str) -> Record:
    """A run on the tokens of ``ids`` with everything in float64."""
    words = ["model=hf", f"model.path={folder / 'tiny'}", "model.dtype=float64", "bits=3"]
    words += ["scales=float32", "calibration=tokens", "eval=tokens", "tracker=none"]
    words += [f"{group}.path={place / 'ids.npz'}" for group in ("calibration", "eval")]
    return do(plan_jobs(CONF, [*words, f"results={place / 'results'}", *more])[0])


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_run_is_the_literal_block_by_block_run(method, alpha, ids, tiny_folder, tmp_path):
    words = [
        f"method={method}",
        f"qep.alpha={alpha}",
        "eval.divergence=false",
        "baseline=false",
        "batch_tokens=32",
    ]
    record = measured(tiny_folder, tmp_path, *words)
    twin = HubModel(str(tiny_folder / "tiny"), dtype="float64").load().model
    with forwards(twin):
        before = blockwise.perplexity(twin, ids["evaluation"])
        blockwise.quantize_model(twin, ids["calibration"], method, 3, alpha)
        expected = blockwise.perplexity(twin, ids["evaluation"])
    assert expected != pytest.approx(before, rel=1e-3)
    assert record.metrics["perplexity/tokens"] == pytest.approx(expected, rel=1e-9)


def test_the_order_of_summation_moves_no_figure(ids, tiny_folder, tmp_path):
    full = measured(tiny_folder, tmp_path, "method=none", "bits=16")
    found = [
        measured(tiny_folder, tmp_path, "force=true", f"batch_tokens={batch}", f"threads={n}")
        for batch, n in ((16, 1), (48, 2), (128, 1))
    ]
    for record in found[1:]:
        assert record.metrics == pytest.approx(found[0].metrics, rel=1e-9)
    assert found[0].metrics["perplexity/tokens"] != full.metrics["perplexity/tokens"]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_model_s_own_code_works_in_the_model_s_precision(precision, tiny_folder):
    """transformers normalises and makes rotary angles in float32; not in a float64 model here."""
    model = HubModel(str(tiny_folder / "tiny"), dtype=precision).load().model
    norm, angles = model.model.norm, model.model.rotary_emb
    states = torch.randn(1, 9, 32, dtype=getattr(torch, precision))
    with forwards(model):
        found = norm(states), *angles(states, torch.arange(9)[None])
    exact = states.double()
    exact = exact / (exact.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    theta = model.config.rope_parameters["rope_theta"]
    turn = torch.arange(9, dtype=torch.float64)[:, None] / theta ** (
        torch.arange(0, 8, 2, dtype=torch.float64) / 8
    )
    turn = torch.cat([turn, turn], dim=1)[None]
    tolerance = 1e-6 if precision == "float32" else 1e-14
    for one, expected in zip(
        found, (exact * norm.weight.double(), turn.cos(), turn.sin()), strict=True
    ):
        assert one.dtype == getattr(torch, precision)
        torch.testing.assert_close(one.double(), expected, rtol=tolerance, atol=tolerance)


class Rounded(TorchDispatchMode):
    """The operations that make numbers of lower precision than float64, other than whole ones."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in pytree.tree_leaves(result):
            lower = isinstance(one, torch.Tensor) and one.is_floating_point()
            if lower and one.dtype != torch.float64 and not torch.equal(one, one.round()):
                self.operations.add(str(func))
        return result


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_a_float64_forward_is_of_lower_precision(family):
    with arithmetic(torch.float64):
        model = build(family).double()
    ids = torch.arange(3, 15)[None]
    with forwards(model), Rounded() as rounded:
        logits = model(input_ids=ids, use_cache=False).logits
    assert logits.dtype == torch.float64
    assert not rounded.operations


@pytest.mark.parametrize(("path", "extra"), VARIANTS)
def test_every_method_works_in_the_precision_that_it_gets(path, extra):
    """In float32 and in float64 the same weights, to what float32 can tell apart."""
    method, _ = load(path, extra)
    weight, inputs, reference = instance(columns=140)
    results = {}
    for precision in (torch.float32, torch.float64):
        x, y, w = (one.to(precision) for one in (inputs, reference, weight))
        statistics = collect(x, y, cross=True, gap=True, magnitude=True)
        results[precision] = method.quantize({"w": w}, statistics, uniform(4))["w"]
        assert results[precision].weight.dtype == precision
        assert results[precision].grid.scale.dtype == precision
    single, double = results[torch.float32], results[torch.float64]
    same = (single.codes == double.codes).float().mean().item()
    assert same > 0.98  # a value at a rounding edge takes what follows in its row along


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16, torch.float64])
def test_one_layer_takes_any_mixture_of_precisions(low):
    weight, inputs, reference = instance()
    layer = quantize_layer(weight, inputs.to(low), reference, method="gptq", alpha=0.5, bits=3)
    assert layer.weight.dtype == torch.promote_types(low, torch.float32)
    expected = quantize_layer(
        weight.double(),
        inputs.to(low).double(),
        reference.double(),
        method="gptq",
        alpha=0.5,
        bits=3,
    )
    assert layer.total_error == pytest.approx(expected.total_error, rel=0.05)
    assert layer.corrected.dtype == layer.weight.dtype
