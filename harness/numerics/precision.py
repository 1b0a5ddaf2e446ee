"""Which precision numbers are worked with: float32, or float64 all the way of a float64 model.

A figure of few bits depends on how sums are rounded: a weight at a rounding edge goes either way, and
everything after it follows. In float64 no order of summation, number of threads or instruction set was
seen to move one. But models of transformers normalise, and turn positions into angles, in float32
whatever precision they have, which is enough to move it by several percent again: see :class:`Doubled`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Products = Literal["highest", "high"]


def working(dtype: torch.dtype) -> torch.dtype:
    """What values of ``dtype`` are worked with in: float32, or float64 where they have it."""
    return torch.promote_types(dtype, torch.float32)


def precise(values: Tensor) -> Tensor:
    """``values`` in the precision that they are worked with in."""
    return values.to(working(values.dtype))


def common_precision(*tensors: Tensor) -> list[Tensor]:
    """``tensors`` in the one precision that they are worked with in together."""
    widest = torch.float32
    for tensor in tensors:
        widest = torch.promote_types(widest, tensor.dtype)
    return [tensor.to(widest) for tensor in tensors]


def set_products(precision: Products) -> None:
    """How CUDA multiplies float32 from now on: with all bits (highest), or in TF32, with 10 of 23 (high)."""
    reduced = precision == "high"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = reduced


@contextmanager
def multiplying(precision: Products) -> Iterator[None]:
    """How CUDA multiplies float32 inside, see :func:`set_products`."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "high"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def exact() -> AbstractContextManager[None]:
    """Products with all bits inside: those of statistics, corrections and rounding, whatever the run says."""
    return multiplying("highest")


class Doubled(TorchFunctionMode):
    """Where a model's own code asks for float32, it gets float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs ``func`` with float64 in float32's place."""
        if func is Tensor.float:
            func = Tensor.double
        given = {name: _doubled(value) for name, value in (kwargs or {}).items()}
        return func(*map(_doubled, args), **given)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def arithmetic(dtype: torch.dtype | str) -> AbstractContextManager[Any]:
    """What a model of precision ``dtype`` is built and run in."""
    return Doubled() if dtype is torch.float64 else nullcontext()


@contextmanager
def forwards(model: PreTrainedModel) -> Iterator[None]:
    """No gradients, and the model's arithmetic; both are properties of the calling thread."""
    with torch.inference_mode(), arithmetic(model.dtype):
        yield
