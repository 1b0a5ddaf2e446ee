"""Records become tables: frames in, text out; torch is never loaded."""

from analysis.load import Frames, load

__all__ = ["Frames", "load"]
