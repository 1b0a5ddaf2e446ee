"""What is not finite stops a run, and is named."""

from __future__ import annotations

from torch import Tensor

from harness.numerics.device import doubt


class NonFiniteError(ArithmeticError):
    """Weights, activations or losses that are not finite; the message names what they belong to."""


def check_finite(name: str, values: Tensor) -> None:
    """Doubts that all of ``values`` are finite; see :func:`harness.numerics.device.doubt`.

    Raises:
        NonFiniteError: any is infinite or no number.
    """

    def error() -> NonFiniteError:
        lost = values.numel() - int(values.isfinite().sum())
        return NonFiniteError(
            f"{name} is not finite: {lost} of {values.numel()} values are infinite or no numbers"
        )

    low, high = values.aminmax()  # one pass, and NaN comes through
    doubt(~(low.isfinite() & high.isfinite()), error)
