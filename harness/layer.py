"""One linear at a time, from raw activations: for notebooks and tests."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from harness import methods
from harness.methods.base import Method, Quantized
from harness.numerics.grid import Grid, GridSpec
from harness.numerics.precision import common_precision
from harness.numerics.propagation import Propagation
from harness.numerics.statistics import collect


@dataclass(frozen=True)
class QuantizedLayer:
    """A quantised linear and its errors per token (``local_error`` and ``total_error`` against W).

    ``weight`` is dense ``[out, in]``, ``codes`` uint8 ``[out, in]``, ``scales`` ``[out, groups]``.
    """

    quantized: Quantized
    corrected: Tensor
    rounding_error: float
    local_error: float
    total_error: float

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
    method: str = "rtn",
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool = False,
    alpha: float = 0.0,
    damping: float = 1.0,
    **method_options: Any,
) -> QuantizedLayer:
    """Corrects and quantises one linear as a run would do, in float32, or float64 where one comes in it.

    Args:
        weight: W, ``[out, in]``.
        inputs: X̂, inputs in the partly quantised model, ``[tokens, in]``.
        reference_inputs: X, inputs in the full-precision model, ``[tokens, in]``; X̂ if left out.
        method: name of a file in ``harness/methods``.
        bits: 2 to 8.
        group_size: input columns per grid; None is one grid per output channel.
        symmetric: symmetric grids.
        alpha: share of the QEP correction, 0 to 1.
        damping: the correction's λ as a multiple of mean(diag H).
        **method_options: fields of the method's dataclass.

    Raises:
        ValueError: an option is out of range, or the shapes do not fit.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits}: allowed are 2 to 8")
    reference = inputs if reference_inputs is None else reference_inputs
    if weight.shape[1] != inputs.shape[-1] or reference.shape != inputs.shape:
        shapes = [tuple(one.shape) for one in (weight, inputs, reference)]
        raise ValueError(
            f"weight {shapes[0]}, inputs {shapes[1]}, reference {shapes[2]} do not fit: "
            "want [out, in], [tokens, in], [tokens, in]"
        )
    quantizer = load_method(method)(**method_options)
    weight, inputs, reference = common_precision(weight, inputs, reference)
    statistics = collect(inputs, reference, cross=True, gap=True, magnitude=True)
    propagation = Propagation(alpha=alpha, damping=damping)
    corrected = propagation.correct({"weight": weight}, statistics)["weight"].weight
    spec = GridSpec(bits, group_size, symmetric)
    quantized = quantizer.quantize({"weight": corrected}, statistics, spec)["weight"]
    return QuantizedLayer(
        quantized,
        corrected,
        rounding_error=statistics.local_error(corrected, quantized.weight),
        local_error=statistics.local_error(weight, quantized.weight),
        total_error=statistics.total_error(weight, quantized.weight),
    )


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
