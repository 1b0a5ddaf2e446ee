"""What libraries warn of, in one line each and once; only what is listed here is dropped.

A warning that nobody has read before gets through: it may be the only sign that a number is wrong.
What lm-eval says while it asks is told by :mod:`harness.evaluate.notices`, with the task's figures.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARIES = ("transformers", "lm_eval", "lm-eval", "datasets", "huggingface_hub")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Dropped:
    """A message that is not told: the library's name ("": any), a pattern of its start, and why not."""

    package: str
    start: str
    reason: str


DROPPED = (
    Dropped(
        "transformers",
        r"\w+ LOAD REPORT",
        "what it lists is refused in one line of ours, or declared to be of no consequence",
    ),
    Dropped(
        "transformers",
        "Token indices sequence length is longer than",
        "whole texts are tokenised at once and cut into windows afterwards",
    ),
    Dropped(
        "transformers",
        "We strongly recommend passing in an `attention_mask`",
        "our padding stands on the right, where a decoder does not look",
    ),
    Dropped(
        "",  # Hydra blames whatever is some calls above it
        r"'hydra/launcher/\w+' is validated against ConfigStore schema",
        "a matter between Hydra and its launchers",
    ),
)


class Notices(logging.Handler):
    """Tells each warning once, in one line.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._say, self._told = say, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Tells of a record that a library has logged."""
        self.tell(record.name.partition(".")[0], record.getMessage())

    def showwarning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Tells of a warning of Python's, in the place of ``warnings.showwarning``."""
        self.tell(library_of(filename), str(message))

    def tell(self, library: str, message: str) -> None:
        """Says the first line of ``message``, unless it is one to drop or was said before."""
        plain = COLOURS.sub("", message).strip()
        if any(one.package in ("", library) and re.match(one.start, plain) for one in DROPPED):
            return
        lines = plain.splitlines() or ["(no text)"]
        said = f"{library} warns: {lines[0]}{' …' if len(lines) > 1 else ''}"
        if said not in self._told:
            self._told.add(said)
            self._say(said)


class Adopted(logging.Logger):
    """The logger of a library that is still to be imported, which will not print by itself."""

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802 (the name is logging's)
        """Takes a handler of ours only."""
        if isinstance(hdlr, Notices):
            super().addHandler(hdlr)


def listen(say: Callable[[str], object]) -> None:
    """From here on ``say`` prints what libraries warn of, whether they are imported yet or not."""
    notices = Notices(say)
    logging.setLoggerClass(Adopted)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    logging.setLoggerClass(logging.Logger)
    for logger in loggers:
        logger.handlers = []
        logger.addHandler(notices)
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if not isinstance(one, Notices)]
    if not root.handlers:
        root.addHandler(notices)
    warnings.showwarning = notices.showwarning


def library_of(filename: str) -> str:
    """The package that a file belongs to."""
    parts = Path(filename).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return "qep-bench" if "harness" in parts else Path(filename).stem
