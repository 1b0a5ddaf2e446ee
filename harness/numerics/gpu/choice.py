"""What runs the column loops and the range search of tensors on a device: the only place that decides it.

On a card that Triton compiles for it is Triton's kernels (:mod:`harness.numerics.gpu.launch`), elsewhere
their twins in plain torch (:mod:`harness.numerics.twins`), which is said once. Both give the same bits, so
that no figure depends on which it was; the time does.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from harness.numerics import twins
from harness.numerics.grid import Codebook

logger = logging.getLogger(__name__)
LEAST = (8, 0)  # compute capability that the kernels are compiled for in the tests
OLDEST = (3, 7)  # triton that they are tested with


class Loops(Protocol):
    """A module of these functions; what they take and return is said where the CPU's are."""

    def gptq_block(
        self,
        weight: Tensor,
        factor: Tensor,
        scale: Tensor,
        zero: Tensor,
        group: Tensor,
        codebook: Codebook,
        carry: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`harness.numerics.kernels.gptq_block`."""
        ...

    def quantease_block(
        self,
        current: Tensor,
        gradient: Tensor,
        hessian: Tensor,
        scale: Tensor,
        zero: Tensor,
        group: Tensor,
        codebook: Codebook,
        relax: bool,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`harness.numerics.kernels.quantease_block`."""
        ...

    def least_error(
        self, weight: Tensor, scale: Tensor, zero: Tensor, codebook: Codebook, norm: float
    ) -> Tensor:
        """See :func:`harness.numerics.shrink.least_error`; float32."""
        ...


@functools.cache
def loops(device: torch.device) -> Loops:
    """Those of ``device``, which is no CPU; the first call for a device without kernels says why."""
    if reason := why_plain(device):
        logger.warning(
            "%s: column loops in plain torch, whose figures are the same and which take longer: %s",
            device,
            reason,
        )
        return twins
    return cast(Loops, importlib.import_module("harness.numerics.gpu.launch"))


def why_plain(device: torch.device) -> str:
    """Why Triton's kernels cannot run on ``device``; nothing if they can."""
    if device.type != "cuda" or torch.version.cuda is None:
        return "Triton's kernels are for NVIDIA cards and a torch that is built for CUDA"
    if (installed := version()) is None:
        return "triton is not installed (pip install 'qep-bench[triton]')"
    if tuple(map(int, installed.split(".")[:2])) < OLDEST:
        return f"triton {installed} is older than {OLDEST[0]}.{OLDEST[1]}"
    if (capability := torch.cuda.get_device_capability(device)) < LEAST:
        return f"compute capability {capability[0]}.{capability[1]} is below {LEAST[0]}.{LEAST[1]}"
    return missing_tools()


def missing_tools() -> str:
    """What is not there of that which Triton builds the launch of a kernel with; nothing if all is."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler (gcc, clang or CC), with which triton builds its launchers"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"there is no {header}, with which triton builds its launchers"
    return ""


def version() -> str | None:
    """The version of triton, None where it is not installed."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def described(device: torch.device) -> str:
    """What :func:`loops` is on ``device``, in two words."""
    return "plain torch" if why_plain(device) else f"triton {version()}"
