"""Tables and figures are found by listing their folders: a new file is a new one, nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

BASE = "base"


def plugins(package: ModuleType) -> dict[str, ModuleType]:
    """The modules of ``package`` by name, in the order of names, without ``base``."""
    names = sorted(one.name for one in pkgutil.iter_modules(package.__path__))
    return {
        name: importlib.import_module(f"{package.__name__}.{name}")
        for name in names
        if name != BASE
    }
