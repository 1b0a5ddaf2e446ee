"""Records become tables: frames in, text out; torch is never loaded."""

from analysis.frames import Frames
from analysis.load import load

__all__ = ["Frames", "load"]
