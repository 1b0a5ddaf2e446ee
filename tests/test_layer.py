"""One layer by itself takes what a YAML file can say, and any tensor that fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from reference import instance

from harness import quantize_layer
from harness.methods.gptq import GPTQ
from harness.methods.quantease import Outliers
from harness.numerics.finite import NonFiniteError
from harness.numerics.propagation import Propagation
from harness.numerics.statistics import collect
from harness.ranges.mse import MSE
from harness.transforms.awq import AWQ
from harness.transforms.hadamard import Hadamard

FILES = sorted((Path(__file__).parents[1] / "conf" / "method").glob("*.yaml"))
METHODS = [path for path in FILES if path.stem != "none"]
W, X, REFERENCE = instance(rows=8, columns=32, tokens=120)
Y = X @ W.T  # as wide as the residual stream that an output is added to


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_its_name_or_its_file_s_content(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    options = {k: v for k, v in content.items() if k not in ("_target_", "damping")}
    named = quantize_layer(W, X, method=path.stem, bits=3, **options)
    read = quantize_layer(W, X, method=content, bits=3)
    assert torch.equal(named.codes, read.codes) and torch.equal(named.weight, read.weight)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"method": "quantease", "outliers": {"fraction": 0.05}}, {"outliers": Outliers(0.05)}),
        (
            {"method": "quantease", "outliers": {"fraction": "0.2", "structured": "true"}},
            {"outliers": Outliers(0.2, structured=True)},
        ),
        ({"method": "gptq", "act_order": 1, "fresh_groups": "yes"},
         {"act_order": True, "fresh_groups": True}),
        ({"range": "mse", "format": None, "transform": ["awq", "hadamard"]},
         {"range": MSE(), "transform": {"awq": AWQ(), "hadamard": Hadamard()}}),
        ({"range": {"_target_": "harness.ranges.mse.MSE", "norm": "2"}}, {"range": MSE(norm=2.0)}),
        ({"format": "nf4"}, {"format": {"_target_": "harness.formats.nf4.NF4"}}),
        ({"method": "gptq", "bits": np.int64(3), "group_size": "8"}, {"bits": 3, "group_size": 8}),
        ({"method": "gptq", "alpha": np.float32(0.5), "symmetric": 1}, {"alpha": 0.5, "symmetric": True}),
        ({"method": {"_target_": "harness.methods.gptq.GPTQ", "damping": 1}}, {"method": GPTQ(1.0)}),
    ],
    ids=str,
)  # fmt: skip
def test_options_are_read_as_those_of_a_file(said: dict[str, Any], meant: dict[str, Any]) -> None:
    loose, typed = (quantize_layer(W, X, REFERENCE, **one) for one in (said, {**said, **meant}))
    assert torch.equal(loose.codes, typed.codes) and torch.equal(loose.weight, typed.weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"outliers": {"fractoin": 0.1}}, "outliers.fractoin: .*did you mean 'outliers.fraction'"),
        ({"outliers": {"fraction": 1}}, "outliers.fraction=1.0: allowed are numbers from 0 to below 1"),
        ({"outliers": 0.1}, "outliers=0.1: want options, fraction, structured"),
        ({"iteration": 3}, "iteration: no such option; did you mean 'iterations'"),
        ({"group_sise": 8}, "group_sise: no such option; did you mean 'group_size'"),
        ({"iterations": 2.5}, "iterations=2.5: input should be a valid integer"),
        ({"bits": 9}, "bits=9: allowed are 2 to 8"),
        ({"bits": True}, "bits=True: want a number"),
        ({"bits": "auto"}, "bits='auto': several are for a budget of many linears"),
        ({"bits": 3, "format": "nf4"}, "bits=3: format=nf4 has 4 bits"),
        ({"range": "mae"}, "range='mae': allowed are loss, minmax, mse, rms"),
        ({"range": {"steps": 3}}, "range._target_ is needed"),
        ({"transform": "hadamrd"}, "transform='hadamrd': allowed are .*did you mean 'hadamard'"),
        ({"transform": 3}, "transform=3: want a name, a list of names, or options by name"),
        ({"format": 3}, "format=3: want a name, or options with _target_"),
        ({"scales": "half"}, "scales='half': input should be 'float16' or 'float32'"),
        ({"format": "nf4", "symmetric": True}, "symmetric=true: format=nf4 has no such choice"),
        ({"residual": (X, X)}, r"residual: want two tensors of floating-point numbers \(120, 8\)"),
        ({"group_size": 0}, "group_size=0: must be positive"),
        ({"group_size": 5}, "group_size=5 does not divide the 32 input columns"),
        ({"alpha": 2}, "alpha=2.0: allowed are 'auto' and numbers from 0 to 1"),
        ({"alpha": "auto"}, "alpha='auto': needs heldout"),
        ({"damping": float("inf")}, "damping=inf: must be finite"),
        ({"dampings": 0.1}, "dampings=0.1: want a list"),
        ({"statistics": "ref"}, "statistics='ref': input should be 'quantized' or 'reference'"),
        ({"method": "quantise"}, "method='quantise': allowed are .*did you mean 'quantease'"),
        ({"method": "none"}, "method=none quantises nothing"),
        ({"method": {"damping": 1}}, "method._target_ is needed"),
        ({"method": GPTQ(), "act_order": True}, "act_order: options of a method that is given"),
        ({"inputs": X[:, :5]}, r"weight \(8, 32\), inputs \(120, 5\), .* do not fit"),
        ({"inputs": X[:0]}, r"inputs \(0, 32\), .*: one of them is empty"),
        ({"inputs": X.int()}, "inputs is torch.int32: want a tensor of floating-point"),
        ({"inputs": X.numpy()}, "inputs is ndarray: want a tensor"),
        ({"inputs": X.to("meta")}, "tensors on cpu, meta: want one device"),
        ({"reference_inputs": X[:7]}, r"reference_inputs \(7, 32\) do not fit"),
        ({"heldout": (X, X[:7])}, r"heldout\[0\] \(120, 32\), heldout\[1\] \(7, 32\) do not fit"),
        ({"heldout": (X,)}, "heldout: want a pair of tensors"),
        ({"heldout": (X, X, X)}, "heldout: want a pair of tensors"),
        ({"residual": (Y, Y, Y), "heldout_residual": (Y,)},
         "residual, heldout_residual: want a pair of tensors"),
        ({"heldout_residual": (Y, Y)}, "heldout_residual: of what tokens"),
        ({"heldout": (X, X), "residual": (Y, Y)}, "give all three, or heldout alone"),
        ({"heldout": (X, X), "residual": (Y, Y), "heldout_residual": (Y, Y[:7])},
         r"heldout_residual: want two tensors of floating-point numbers \(120, 8\)"),
        ({"residual": (Y, Y.to("meta"))}, "tensors on cpu, meta: want one device"),
        ({"residual": (Y.int(), Y)}, r"residual\[0\] is torch.int32: want a tensor"),
        ({"residual": (Y, Y.to(torch.float8_e4m3fn))}, r"residual\[1\] is torch.float8_e4m3fn: want"),
    ],
    ids=lambda one: one if isinstance(one, str) else "+".join(one),
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(options: dict[str, Any], said: str) -> None:
    given = {"weight": W, "inputs": X, "method": "quantease", **options}
    with pytest.raises(ValueError, match=said) as caught:
        quantize_layer(**given)
    assert "\n" not in str(caught.value)


def test_everything_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        quantize_layer(W, X, method="gptq", bits=1, alpha=-1, act_order="x", dampnig=1)
    for word in ("bits=1", "alpha=-1", "act_order='x'", "dampnig"):
        assert re.search(rf"(^|; ){word}", str(caught.value)), word


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_any_layout_of_the_same_numbers_gives_the_same(path: Path) -> None:
    def codes(weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        reference = REFERENCE.reshape(inputs.shape)
        layer = quantize_layer(weight, inputs, reference, method=path.stem, alpha=0.5)
        assert not layer.weight.requires_grad and layer.weight.isfinite().all()
        return layer.codes

    plain = codes(W, X)
    assert torch.equal(plain, codes(W.T.contiguous().T, X.T.contiguous().T))
    assert torch.equal(plain, codes(W, X.reshape(4, 30, 32)))
    learned = W.clone().requires_grad_(), X.clone().requires_grad_()
    assert torch.equal(plain, codes(*learned)) and learned[0].grad is None
    one = quantize_layer(W, X[:1], method=path.stem, bits=8)
    assert one.weight.isfinite().all()
    assert one.local_error < 1e-2 or path.stem == "quip"  # whose range cuts weights off


def test_alpha_is_chosen_on_held_out_tokens_as_in_a_run() -> None:
    train, held = ((X[part], 1.3 * X[part]) for part in (slice(0, 60), slice(60, None)))
    layer = quantize_layer(W, *train, alpha="auto", dampings=[1, 0.1], heldout=held)
    statistics = [collect(*pair, cross=True) for pair in (train, held)]
    chosen = Propagation("auto", dampings=(1.0, 0.1)).correct({"w": W}, *statistics)["w"]
    assert 0 < layer.alpha == chosen.alpha <= 1 and layer.damping == chosen.damping
    assert torch.equal(layer.corrected, chosen.weight)


def test_the_residual_stream_is_a_target_where_it_is_given() -> None:
    stream = torch.randn(120, 8, generator=torch.Generator().manual_seed(5))
    changed = stream - X @ torch.randn(32, 8) / 9
    given = {"method": "gptq", "alpha": 1.0, "damping": 0.01, "bits": 8}
    plain = quantize_layer(W, X, REFERENCE, **given)
    aimed = quantize_layer(W, X, REFERENCE, residual=(changed, stream), **given)

    def apart(layer: Any) -> float:
        lost = stream - changed + REFERENCE @ W.T - X @ layer.weight.T
        return lost.square().sum().item()

    assert apart(aimed) < 0.9 * apart(plain)
    split = slice(0, 80), slice(80, None)
    (x, h), (r, hr), (c, hc), (s, hs) = ([one[part] for part in split]
                                         for one in (X, REFERENCE, changed, stream))  # fmt: skip
    auto = quantize_layer(W, x, r, alpha="auto", residual=(c, s), heldout=(h, hr),
                          heldout_residual=(hc, hs), bits=8)  # fmt: skip
    assert 0 < auto.alpha <= 1


def test_the_other_options_of_a_run_are_there() -> None:
    searched, plain = (quantize_layer(W**3, X, bits=3, range=one) for one in ("mse", "minmax"))
    assert (searched.scales < plain.scales).any()
    turned = quantize_layer(W, X, transform="hadamard", method="gptq", bits=3, refit="round")
    assert torch.allclose(turned.basis.back(turned.grid.dequantize(turned.codes)), turned.weight)
    assert turned.local_error < quantize_layer(W, X, bits=3).local_error
    reference = quantize_layer(W, X, REFERENCE, method="gptq", statistics="reference")
    assert torch.equal(reference.codes, quantize_layer(W, REFERENCE, method="gptq").codes)


@pytest.mark.parametrize("name", ["weight", "inputs", "reference_inputs"])
def test_what_is_no_number_is_refused_by_name(name: str) -> None:
    given = {"weight": W.clone(), "inputs": X.clone(), "reference_inputs": REFERENCE.clone()}
    given[name][1, 1] = float("nan")
    count = given[name].numel()
    with pytest.raises(NonFiniteError, match=f"{name} is not finite: 1 of {count} values"):
        quantize_layer(**given)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_weights_whose_squares_overflow_are_worked_with_or_refused(path: Path) -> None:
    try:
        layer = quantize_layer(W * 1e30, X, method=path.stem, scales="float32")
    except NonFiniteError as error:
        assert path.stem in ("awq", "quantease", "qqa") and "loss" in str(error)
    else:
        small = quantize_layer(W, X, method=path.stem, scales="float32")
        assert layer.local_error == pytest.approx(1e60 * small.local_error, rel=0.02)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"residual": torch.zeros(2, 40, 12)}, "residual: want a pair of tensors"),
        ({"heldout": torch.zeros(2, 40), "alpha": "auto"}, "heldout: want a pair of tensors"),
        ({"heldout": 3, "residual": 3}, "heldout, residual: want a pair of tensors"),
        ({"weight": W.to(torch.float8_e4m3fn)}, "weight is torch.float8_e4m3fn: want"),
        ({"weight": W.to_sparse()}, "weight is torch.sparse_coo: want"),
        (
            {"weight": W.to("meta"), "inputs": X.to("meta")},
            "tensors on meta: want tensors with values",
        ),
    ],
)
def test_what_is_no_tensor_to_compute_with_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        quantize_layer(**{"weight": W, "inputs": X} | given)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1e20, 1e-25])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_inputs_whose_squares_are_lost_are_refused(size: float, alpha: float) -> None:
    with pytest.raises(NonFiniteError, match="inputs: squares of values .* are beyond float32"):
        quantize_layer(W, size * X, size * REFERENCE, bits=3, alpha=alpha)
    found = quantize_layer(W.double(), size * X.double(), size * REFERENCE.double(), bits=3)
    assert found.local_error == pytest.approx(
        size**2 * quantize_layer(W.double(), X.double(), REFERENCE.double(), bits=3).local_error
    )


@pytest.mark.parametrize("method", ["rtn", "gptq", "quip"])
def test_weights_too_small_for_float16_scales_are_refused(method: str) -> None:
    with pytest.raises(
        ValueError, match="scales=float16: weights of .*; allowed is scales=float32"
    ):
        quantize_layer(2.0**-40 * W, X, method=method, bits=3)
    quantize_layer(torch.zeros_like(W), X, method=method, bits=3)  # nothing is lost of zeros


def test_float32_scales_take_weights_of_any_size() -> None:
    small = quantize_layer(2.0**-40 * W, X, bits=3, scales="float32")
    assert torch.equal(
        small.weight, 2.0**-40 * quantize_layer(W, X, bits=3, scales="float32").weight
    )
