"""One linear at a time, from raw activations: for notebooks and tests."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from harness import methods
from harness.methods.base import Method, Quantized
from harness.numerics.grid import Grid, GridSpec
from harness.numerics.precision import common_precision
from harness.numerics.propagation import Propagation
from harness.numerics.statistics import check_finite, collect
from harness.settings.construct import make, plugin


@dataclass(frozen=True)
class QuantizedLayer:
    """A quantised linear and its errors per token (``local_error`` and ``total_error`` against W).

    ``weight`` is dense ``[out, in]``, ``codes`` uint8 ``[out, in]``, ``scales`` ``[out, groups]``.
    ``alpha`` and ``damping`` are of the correction as applied.
    """

    quantized: Quantized
    corrected: Tensor
    rounding_error: float
    local_error: float
    total_error: float
    alpha: float
    damping: float

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
    mse: bool = False,
    alpha: float | Literal["auto"] = 0.0,
    damping: float = 1.0,
    dampings: Sequence[float] = Propagation.dampings,
    statistics: Literal["quantized", "reference"] = "quantized",
    heldout: tuple[Tensor, Tensor] | None = None,
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
        bits: 2 to 8.
        group_size: input columns per grid; None is one grid per output channel.
        symmetric: symmetric grids.
        mse: ranges searched for the least |error|^2.4.
        alpha: share of the QEP correction, 0 to 1, or "auto", which needs ``heldout``.
        damping: the correction's λ as a multiple of mean(diag H).
        dampings: what "auto" chooses the damping from.
        statistics: the stream that feeds the method's H.
        heldout: X̂ and X of tokens that feed no statistic, each ``[..., in]``.
        **method_options: fields of the method's dataclass.

    Raises:
        ValueError: options are unknown or out of range, or tensors do not fit; all are named.
        NonFiniteError: a tensor, or a loss, is not finite.
    """
    problems: list[str] = []
    quantizer = make_method(method, method_options, problems)
    grid = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "mse": mse}
    spec = make(GridSpec, grid, "", problems)
    shares = {"alpha": alpha, "damping": damping, "dampings": dampings, "statistics": statistics}
    propagation = make(Propagation, shares, "", problems)
    if spec is not None:
        problems += spec.problems()
    if propagation is not None and propagation.automatic and heldout is None:
        problems.append("alpha='auto': needs heldout=(inputs, reference inputs)")
    reference = inputs if reference_inputs is None else reference_inputs
    given = {"weight": weight, "inputs": inputs, "reference_inputs": reference}
    given |= dict(zip(("heldout[0]", "heldout[1]"), heldout or (), strict=False))
    problems += misfits(given)
    if problems:
        raise ValueError("; ".join(problems))
    with torch.no_grad():
        return corrected_and_quantized(given, quantizer, spec, propagation)


def corrected_and_quantized(
    given: Mapping[str, Tensor], method: Method, spec: GridSpec, propagation: Propagation
) -> QuantizedLayer:
    """The same from tensors that fit, as :func:`misfits` has them, and options that are typed."""
    weight, *activations = common_precision(*(one.detach() for one in given.values()))
    for name, one in zip(given, (weight, *activations), strict=True):
        check_finite(name, one)
    statistics, *heldout = (
        collect(*pair, cross=True, gap=True, magnitude=True)
        for pair in zip(activations[::2], activations[1::2], strict=True)
    )
    corrected = propagation.correct({"weight": weight}, statistics, *heldout)["weight"]
    seen = statistics if propagation.statistics == "quantized" else statistics.of_reference()
    quantized = method.quantize({"weight": corrected.weight}, seen, spec)["weight"]
    return QuantizedLayer(
        quantized,
        corrected.weight,
        rounding_error=statistics.local_error(corrected.weight, quantized.weight),
        local_error=statistics.local_error(weight, quantized.weight),
        total_error=statistics.total_error(weight, quantized.weight),
        alpha=corrected.alpha,
        damping=corrected.damping,
    )


def misfits(given: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with tensors by name: W, then X̂ and X, then those of held-out tokens if any."""
    for name, one in given.items():
        if not (isinstance(one, Tensor) and one.is_floating_point()):
            kind = one.dtype if isinstance(one, Tensor) else type(one).__name__
            return [f"{name} is {kind}: want a tensor of floating-point numbers"]
    (weight, *activations) = (tuple(one.shape) for one in given.values())
    said = ", ".join(f"{name} {tuple(one.shape)}" for name, one in given.items())
    pairs = list(zip(activations[::2], activations[1::2], strict=False))
    fit = len(weight) == 2 and len(activations) == 2 * len(pairs)
    if not fit or any(one != other or one[-1:] != weight[1:] for one, other in pairs):
        return [f"{said} do not fit: want [out, in], and pairs of [tokens, in]"]
    if not all(one.numel() for one in given.values()):
        return [f"{said}: one of them is empty"]
    devices = sorted({str(one.device) for one in given.values()})
    return [f"tensors on {', '.join(devices)}: want one device"] if len(devices) > 1 else []


def make_method(
    method: str | Mapping[str, Any] | Method, options: Mapping[str, Any], problems: list[str]
) -> Any:
    """The method that a caller means, by name, as in a YAML file, or built."""
    if isinstance(method, str):
        try:
            kind = load_method(method)
        except ValueError as error:
            problems.append(str(error))
            return None
        if not kind.quantizes:
            problems.append(f"method={method} quantises nothing")
        own = [name for name in signature(quantize_layer).parameters if name != "method_options"]
        return make(kind, options, "", problems, beside=own)
    if options:
        problems.append(f"{', '.join(options)}: options of a method that is given by its name")
    return plugin(method, "method", problems, does="quantize")


def load_method(name: str) -> type[Method]:
    """The method class in ``harness/methods/<name>.py``; an unknown name is answered with the nearest."""
    known = sorted(
        path.stem
        for path in Path(methods.__path__[0]).glob("*.py")
        if path.stem not in ("__init__", "base")
    )
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method={name!r}: allowed are {', '.join(known)}{hint}")
    module = importlib.import_module(f"harness.methods.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and hasattr(value, "quantize")
    ]
    return cast(type[Method], found[0])
