"""What is published of a run names no folder of the machine that it was made on."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from harness.settings.flat import short

PROGRAM = Path(__file__).parents[2]  # the folder that the package lies in
# A path that begins at the root or at home, where a value begins; no address of a page.
ABSOLUTE = re.compile(r"""(?<![^\s='"\[{(,:])(?:~|/(?!/))[^\s='"\]}),:]*/([^\s='"\]}),:/]+)""")
HIDDEN = r"…/\1"


def without_folders(trace: str) -> str:
    """A traceback with the places of this program, of Python and of its user by short names."""
    folders = {
        str(PROGRAM): "",
        sys.prefix: f"…{os.sep}",
        os.path.expanduser("~"): f"~{os.sep}",
    }
    for folder in sorted(folders, key=len, reverse=True):
        inside = rf"(?<![\w./-]){re.escape(folder + os.sep)}"
        trace = re.sub(inside, folders[folder].replace("\\", r"\\"), trace)
    return trace


def unplaced(
    command: str, config: Mapping[str, Any], contents: Mapping[str, str]
) -> tuple[str, Any]:
    """A command and the settings that it comes to, with files by their names and what they held.

    Those of ``contents`` become ``llama@1a2b3c4d``, of any other path from the root its name is left.
    """
    names: dict[str, str] = {}
    settings = _renamed(config, contents, "", names)
    for value in sorted(names, key=len, reverse=True):
        whole = rf"(?<![\w./~-]){re.escape(value)}(?![\w/-])"
        command = re.sub(whole, names[value].replace("\\", r"\\"), command)
    return ABSOLUTE.sub(HIDDEN, command), settings


def _renamed(node: Any, contents: Mapping[str, str], where: str, names: dict[str, str]) -> Any:
    """A part of a configuration; adds to ``names`` what files in folders are called instead."""
    if where in contents:
        content = contents[where]
        if isinstance(node, list):  # names that lm-eval knows may be among them
            return [_named(one, content, names) if _folder(one) else one for one in node]
        return _named(node, content, names)
    if isinstance(node, Mapping | list):
        parts = node.items() if isinstance(node, Mapping) else enumerate(node)
        made = {
            key: _renamed(one, contents, f"{where}.{key}" if where else str(key), names)
            for key, one in parts
        }
        return made if isinstance(node, Mapping) else list(made.values())
    return ABSOLUTE.sub(HIDDEN, node) if isinstance(node, str) else node


def _named(value: str, content: str, names: dict[str, str]) -> str:
    on_hub = content.startswith(f"{value}@")
    name = f"{value if on_hub else PurePath(value).name}@{short(content)}"
    if _folder(value):
        names[value] = name
    return name


def _folder(value: str) -> bool:
    """Whether a path says a folder, or the owner of what lies on the hub."""
    return PurePath(value).name != value
