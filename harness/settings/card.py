"""What a card can do, as its maker says or as it was measured: what an estimate of a run goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

SPEEDS = ("float64", "float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True)
class Card:
    """A device that need not be there; ``conf/device_profile/`` has some.

    Args:
        name: what tables call it.
        memory: GB (10^9 bytes).
        bandwidth: of that memory, GB/s.
        link: between the host and it, GB/s in one direction.
        tflops: of dense matrix products, 10^12 floating-point operations a second, by :data:`SPEEDS`.
    """

    name: str
    memory: float
    bandwidth: float
    link: float
    tflops: Mapping[str, float] = field(hash=False)

    def __post_init__(self) -> None:
        problems = [
            f"{key}={value:g}: must be positive"
            for key, value in (
                ("memory", self.memory),
                ("bandwidth", self.bandwidth),
                ("link", self.link),
                *((f"tflops.{key}", one) for key, one in self.tflops.items()),
            )
            if not value > 0
        ]
        if self.tflops.keys() != set(SPEEDS):
            problems.append(f"tflops={{{', '.join(self.tflops)}}}: wants {', '.join(SPEEDS)}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def bytes(self) -> float:
        """Its memory in bytes."""
        return self.memory * 1e9

    def speed(self, dtype: torch.dtype, tf32: bool = False) -> float:
        """Floating-point operations a second of products in ``dtype``; float32 may be TF32."""
        name = str(dtype).removeprefix("torch.")
        return self.tflops["tf32" if tf32 and dtype == torch.float32 else name] * 1e12
