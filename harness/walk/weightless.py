"""Forwards of a model without its weights, on the meta device: shapes alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class WeightlessError(RuntimeError):
    """A forward that does not run on the meta device: there it can't be looked at before it loads."""


class Weightless(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers where a forward on the meta device asks for what that device does not have.

    transformers reads a value here and there (are positions consecutive, is this padding?): yes, it
    is as usual. And the product of grouped matrices is known to the meta device in bfloat16 only.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs ``func``, except for these two."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 1
        if func is torch.ops.aten._grouped_mm.default and args[0].is_meta:
            return args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        return func(*args, **(kwargs or {}))
