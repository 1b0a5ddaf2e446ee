"""One linear at a time, from raw activations: for notebooks and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from harness.methods.base import Method, Quantized
from harness.numerics.basis import Basis
from harness.numerics.device import doubt
from harness.numerics.finite import NonFiniteError, check_finite
from harness.numerics.grid import Grid
from harness.numerics.precision import common_precision
from harness.numerics.propagation import Propagation
from harness.numerics.statistics import Statistics, collect
from harness.recipe import Recipe, quantize_stage
from harness.settings.axes import AUTO, AXES
from harness.settings.construct import make, plugin
from harness.settings.plugins import load_plugin
from harness.settings.read_axes import read_axes

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NAME = "weight"  # of the linear, for methods that look at it


@dataclass(frozen=True)
class QuantizedLayer:
    """A quantised linear and its errors per token (``local_error`` and ``total_error`` against W).

    ``weight`` is dense ``[out, in]``, ``codes`` uint8 ``[out, in]``, ``scales`` ``[out, groups]``; codes
    and scales are of the weight in ``basis``. ``alpha``, ``damping`` and ``ridge`` are of the correction
    as applied; ``quantized.ridge`` is the one that the method took.
    """

    quantized: Quantized
    corrected: Tensor
    rounding_error: float
    local_error: float
    total_error: float
    alpha: float
    damping: float
    ridge: float

    @property
    def weight(self) -> Tensor:
        """The dense V, ``[out, in]``."""
        return self.quantized.weight

    @property
    def codes(self) -> Tensor:
        """The codes, uint8 ``[out, in]``."""
        return self.quantized.codes

    @property
    def grid(self) -> Grid:
        """The grid that the codes refer to."""
        return self.quantized.grid

    @property
    def basis(self) -> Basis:
        """The basis of codes and grid; that of the model without a transform."""
        return self.quantized.basis

    @property
    def scales(self) -> Tensor:
        """The scales, ``[out, groups]``."""
        return self.quantized.grid.scale


def quantize_layer(
    weight: Tensor,
    inputs: Tensor,
    reference_inputs: Tensor | None = None,
    *,
    method: str | Mapping[str, Any] | Method = "rtn",
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool = False,
    scales: Literal["float16", "float32"] = "float16",
    refit: Literal["none", "scales", "round"] = "none",
    format: str | Mapping[str, Any] | None = None,
    range: Any = None,
    transform: Any = None,
    alpha: float | Literal["auto"] = 0.0,
    damping: float = 1.0,
    dampings: Sequence[float] = Propagation.dampings,
    statistics: Literal["quantized", "reference"] = "quantized",
    residual: tuple[Tensor, Tensor] | None = None,
    heldout: tuple[Tensor, Tensor] | None = None,
    heldout_residual: tuple[Tensor, Tensor] | None = None,
    **method_options: Any,
) -> QuantizedLayer:
    """Corrects and quantises one linear as a run would do, in float32, or float64 where one comes in it.

    Options are what a YAML file or the command line could say, and are read in the same way.

    Args:
        weight: W, ``[out, in]``.
        inputs: X̂, inputs in the partly quantised model, ``[..., in]``.
        reference_inputs: X, inputs in the full-precision model, of the same shape; X̂ if left out.
        method: name of a file in ``harness/methods``; or an object of its class, or its options with
            the ``_target_`` of a YAML file, where an option has a name that is taken here.
        bits: of a code: 2 to 8 for integers.
        group_size: input columns per scale; None is one scale per output channel.
        symmetric: ranges around 0.
        scales: the type that scales are stored and take part in rounding in.
        refit: scales refitted to the codes ("scales"), and weights rounded once more ("round").
        format: name of a file in ``harness/formats``, or options with ``_target_``; None is the method's.
        range: the same of ``harness/ranges``.
        transform: the same of ``harness/transforms``, or a list of names, the first one first.
        alpha: share of the QEP correction, 0 to 1, or "auto", which needs ``heldout``.
        damping: the correction's λ as a multiple of mean(diag H).
        dampings: what "auto" chooses the damping from.
        statistics: the stream that feeds the method's H.
        residual: R̂ and R, the streams that the output is added to, each ``[..., out]``: they become
            the target of the correction.
        heldout: X̂ and X of tokens that feed no statistic, each ``[..., in]``.
        heldout_residual: R̂ and R of these tokens.
        **method_options: fields of the method's dataclass.

    Raises:
        ValueError: options are unknown or out of range, or tensors do not fit; all are named.
        NonFiniteError: a tensor, or a loss, is not finite.
    """
    problems: list[str] = []
    quantizer = make_method(method, method_options, problems)
    said = {key: value for key, value in locals().items() if key in AXES}
    if said["bits"] == AUTO or isinstance(said["bits"], list | tuple):
        problems.append(
            f"bits={bits!r}: several are for a budget of many linears; here there is one"
        )
        said["bits"] = 4
    axes = read_axes(said, problems)
    target = "input" if residual is None else "residual"
    shares = {"alpha": alpha, "damping": damping, "dampings": dampings, "statistics": statistics}
    propagation = make(Propagation, shares | {"target": target}, "", problems)
    if axes is not None:
        plain = load_plugin("methods", "rtn")()
        problems += axes.problems(quantizer if hasattr(quantizer, "composition") else plain)
    if propagation is not None and propagation.automatic and heldout is None:
        problems.append("alpha='auto': needs heldout=(inputs, reference inputs)")
    reference = inputs if reference_inputs is None else reference_inputs
    given = by_name(
        {"weight": weight, "inputs": inputs, "reference_inputs": reference},
        {"heldout": heldout, "residual": residual, "heldout_residual": heldout_residual},
        problems,
    )
    if problems:
        raise ValueError("; ".join(problems))
    assert axes is not None
    with torch.no_grad():
        return corrected_and_quantized(given, axes.recipe(quantizer, NAME), propagation)


def corrected_and_quantized(
    given: Mapping[str, Tensor], recipe: Recipe, propagation: Propagation
) -> QuantizedLayer:
    """The same from tensors that fit, as :func:`misfits` has them, and options that are typed."""
    ready = dict(
        zip(given, common_precision(*(one.detach() for one in given.values())), strict=True)
    )
    for name, one in ready.items():
        check_finite(name, one)
    weight = ready["weight"]
    statistics = _collected(ready, "inputs", "reference_inputs", "residual")
    check_moments(ready["inputs"], statistics.hessian)
    heldout = None
    if "heldout[0]" in ready:
        heldout = _collected(ready, "heldout[0]", "heldout[1]", "heldout_residual")
    writers = [NAME] if propagation.target == "residual" else []
    corrected = propagation.correct({NAME: weight}, statistics, heldout, writers)[NAME]
    seen = statistics if propagation.statistics == "quantized" else statistics.of_reference()
    quantized = quantize_stage({NAME: recipe}, {NAME: corrected.weight}, seen)[NAME]
    return QuantizedLayer(
        quantized,
        corrected.weight,
        rounding_error=statistics.local_error(corrected.weight, quantized.weight),
        local_error=statistics.local_error(weight, quantized.weight),
        total_error=statistics.total_error(weight, quantized.weight),
        alpha=corrected.alpha,
        damping=corrected.damping,
        ridge=corrected.ridge,
    )


def check_moments(inputs: Tensor, hessian: Tensor) -> None:
    """Doubts inputs whose squares the precision does not hold, from H = X̂ᵀX̂ / T ``[in, in]``.

    Raises:
        NonFiniteError: they overflow, or all of them are lost.
    """
    low, high = inputs.abs().aminmax()
    lost = ~hessian.diagonal().isfinite().all() | ((high > 0) & (hessian.diagonal() == 0).all())
    doubt(
        lost,
        lambda: NonFiniteError(
            f"inputs: squares of values from {low.item():.3g} to {high.item():.3g} are beyond "
            f"{str(inputs.dtype).removeprefix('torch.')}; give them in float64, or in other units"
        ),
    )


def _collected(
    given: Mapping[str, Tensor], inputs: str, reference: str, stream: str
) -> Statistics:
    """All statistics of one set of tokens."""
    lost = None
    if f"{stream}[0]" in given:
        lost = given[f"{stream}[1]"] - given[f"{stream}[0]"]
    return collect(given[inputs], given[reference], lost, cross=True, gap=True, magnitude=True)


def by_name(
    given: Mapping[str, Any], pairs: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """All tensors by name, of ``pairs`` as ``name[0]`` and ``name[1]``; adds what is wrong with them."""
    there = {name: pair for name, pair in pairs.items() if pair is not None}
    odd = [
        name
        for name, pair in there.items()
        if not isinstance(pair, list | tuple) or len(pair) != 2
    ]
    if odd:
        problems.append(f"{', '.join(odd)}: want a pair of tensors")
    every = dict(given)
    for name, pair in there.items():
        if name not in odd:
            every |= {f"{name}[{i}]": one for i, one in enumerate(pair)}
    if "heldout_residual" in there and "heldout" not in there:
        problems.append("heldout_residual: of what tokens? there is no heldout")
    elif "heldout" in there and ("residual" in there) != ("heldout_residual" in there):
        problems.append("residual, heldout and heldout_residual: give all three, or heldout alone")
    problems += misfits(every)
    return every


def _foreign(one: Any) -> str | None:
    """What something is that can't be computed with: no tensor, of other numbers, or sparse."""
    if not isinstance(one, Tensor):
        return type(one).__name__
    if one.dtype not in FLOATS:
        return str(one.dtype)
    return None if one.layout is torch.strided else str(one.layout)


def misfits(given: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with tensors by name: W, X̂ and X, those of held-out tokens and R̂ and R if any."""
    for name, one in given.items():
        if (kind := _foreign(one)) is not None:
            return [f"{name} is {kind}: want a tensor of floating-point numbers"]
    shapes = {name: tuple(one.shape) for name, one in given.items()}
    weight, said = shapes["weight"], ", ".join(f"{name} {one}" for name, one in shapes.items())
    pairs = [("inputs", "reference_inputs"), ("heldout[0]", "heldout[1]")]
    apart = [
        one
        for one, other in pairs
        if one in shapes and (shapes[one] != shapes[other] or shapes[one][-1:] != weight[1:])
    ]
    if len(weight) != 2 or apart:
        return [f"{said} do not fit: want [out, in], and pairs of [tokens, in]"]
    for stream, (read, _) in zip(("residual", "heldout_residual"), pairs, strict=True):
        wanted = (*shapes.get(read, ())[:-1], weight[0])
        if any(shapes.get(f"{stream}[{i}]", wanted) != wanted for i in (0, 1)) and read in shapes:
            return [f"{stream}: want two tensors of floating-point numbers {wanted}: R̂ and R"]
    if not all(one.numel() for one in given.values()):
        return [f"{said}: one of them is empty"]
    devices = sorted({str(one.device) for one in given.values()})
    if len(devices) > 1:
        return [f"tensors on {', '.join(devices)}: want one device"]
    return ["tensors on meta: want tensors with values"] if devices == ["meta"] else []


def make_method(
    method: str | Mapping[str, Any] | Method, options: Mapping[str, Any], problems: list[str]
) -> Any:
    """The method that a caller means, by name, as in a YAML file, or built."""
    if isinstance(method, str):
        try:
            kind = load_plugin("methods", method)
        except ValueError as error:
            problems.append(str(error))
            return None
        if not getattr(kind, "quantizes", True):
            problems.append(f"method={method} quantises nothing")
        own = [name for name in signature(quantize_layer).parameters if name != "method_options"]
        return make(kind, options, "", problems, beside=own)
    if options:
        problems.append(f"{', '.join(options)}: options of a method that is given by its name")
    return plugin(method, "method", problems, does="quantize")
