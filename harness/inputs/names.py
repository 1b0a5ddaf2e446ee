"""Names that become part of paths and of metrics' keys: one component each, the same everywhere."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

LONGEST = 96  # bytes: with method, settings and hashes behind it a folder's name stays below 255
ALLOWED = "letters, digits, '_', '-', '.' and '+', the first one no sign"
STRANGE = re.compile(r"[^\w.+-]+")  # of every script, letters and digits are \w


def cleaned(name: str) -> str:
    """``name`` as one component of a path: what is not allowed becomes ``_``, what is too long is cut."""
    found = STRANGE.sub("_", unicodedata.normalize("NFC", name)).lstrip(".+-")
    return found.encode()[:LONGEST].decode(errors="ignore")


def name_of(path: str) -> str:
    """What a text or a task in a file is called: as the file without its suffix, cleaned."""
    return cleaned(PurePath(path).stem)


def name_problem(what: str, name: str) -> str | None:
    """Why ``name`` can't be used, in one line that says what is allowed; None if it can."""
    if name and cleaned(name) == name:
        return None
    shown = name if len(name) <= LONGEST else f"{name[:LONGEST]}…"
    near = cleaned(PurePath(name).name)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"{what}={shown!r}: allowed are up to {LONGEST} bytes of {ALLOWED}{hint}"
