"""How the program is called, and the folder of one's own that it may be given."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

OWN_CONF = "--config-dir"  # as Hydra calls it
SHORT = "-cd"


def program() -> str:
    """What a person types: ``qep-bench``, or ``python run.py`` in a checkout."""
    return "qep-bench" if Path(sys.argv[0]).stem == "qep-bench" else "python run.py"


def called(own: Path | None) -> str:
    """What stands before the overrides of a command, the user's own folder included."""
    return program() if own is None else f"{program()} {OWN_CONF} {shlex.quote(str(own))}"


def alone(before: str, words: Sequence[str]) -> str:
    """The command that runs one job: a named grid, or words for Hydra, take a sweep of that job.

    Where a run leaves its record is no part of it: ``results=`` is left out, and with it a path of the
    machine's.
    """
    words = [word for word in words if not word.startswith("results=")]
    sweeps = any(word.startswith(("experiment=", "hydra")) for word in words)
    return " ".join([before, *(["-m"] if sweeps else []), shlex.join(words)]).rstrip()


def own_folder(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder behind ``--config-dir``, and the words without it.

    Raises:
        ValueError: it is missing or no folder; one line.
    """
    left, folder = list[str](), None
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in (OWN_CONF, SHORT):
            left.append(word)
            continue
        given = value if equals else next(rest, "")
        folder = Path(given).expanduser()
        if not given or not os.path.isdir(folder):  # pathlib raises on names that are too long
            raise ValueError(f"{OWN_CONF} {given}: no such folder; want {OWN_CONF} FOLDER")
    return folder, left
