"""An extension of Griffe: docstrings are plain text in which only code is marked.

They are read in an editor first, where W* and W_:,k are formulas; Markdown would make emphasis of them, and
print the roles that Sphinx links (``:func:``) as they stand.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Docstring, DocstringSection, Extension, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([^`]+)`")
CODE = re.compile(r"(``.+?``|`[^`\n]+`)", re.DOTALL)
MARKS = re.compile(r"([*_<\\])")
INDENT = "    "  # of a block of code, after an empty line


class PlainText(Extension):
    """Makes the docstring of every module, class, function and attribute a :class:`PlainDocstring`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for each object once its members are there."""
        if obj.docstring is not None:
            obj.docstring.__class__ = PlainDocstring


class PlainDocstring(Docstring):
    """A docstring whose sections have the marks escaped that its author has not meant."""

    def parse(self, *args: Any, **kwargs: Any) -> list[DocstringSection]:
        """The sections, as MkDocs will take them."""
        sections = super().parse(*args, **kwargs)
        for section in sections:
            if isinstance(section.value, str):
                section.value = escaped(section.value)
            elif isinstance(section.value, list):
                for item in section.value:
                    item.description = escaped(item.description)
        return sections


def escaped(text: str) -> str:
    """The text with roles as code, and marks of Markdown escaped outside of code."""
    blocks, code, before = [[]], [False], ""
    for line in ROLE.sub(r"`\1`", text).split("\n"):
        inside = line.startswith(INDENT) and (not before or code[-1])
        if inside != code[-1] and line:
            blocks.append([])
            code.append(inside)
        blocks[-1].append(line)
        before = line
    return "\n".join(
        "\n".join(lines) if is_code else escaped_prose("\n".join(lines))
        for lines, is_code in zip(blocks, code, strict=True)
    )


def escaped_prose(text: str) -> str:
    """The same for text without blocks of code."""
    parts = CODE.split(text)
    parts[::2] = [MARKS.sub(r"\\\1", part) for part in parts[::2]]
    return "".join(parts)
