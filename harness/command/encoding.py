"""Output that the terminal or file can't hold is written in ASCII instead of ending the program."""

from __future__ import annotations

import codecs
import io
import sys

NAME = "plain"
PLAIN = {
    "✓": "ok", "✗": "x", "■": "#", "◼": "#", "·": "-", "…": "...", "–": "-", "—": "-", "−": "-",
    "±": "+/-", "×": "x", "≤": "<=", "≥": ">=", "→": "->", "‖": "|", "²": "^2", "λ": "lambda",
    "Σ": "sum", "∞": "inf", "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip


def plain_where_needed() -> None:
    """From here on characters that an output stream can't encode are written as others or ``?``."""
    codecs.register_error(NAME, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NAME)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(one, "?") for one in lost), error.end
