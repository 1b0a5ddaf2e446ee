"""A benchmark harness for layer-wise post-training quantisation of language models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.layer import QuantizedLayer as QuantizedLayer
    from harness.layer import quantize_layer as quantize_layer

__version__ = "0.1.0"
__all__ = ["QuantizedLayer", "quantize_layer"]


def __getattr__(name: str) -> Any:
    """Loads the public functions on first use, so that ``import harness`` does not load torch."""
    if name in __all__:
        from harness import layer

        return getattr(layer, name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
