"""What a table is, and its three forms: Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from harness.settings.said import NAMES

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # behind a row's end it would be an option of the line break
    "]": "{]}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "−": r"$-$",
    "∞": r"$\infty$",
    "–": "--",
    "…": r"\ldots{}",
    "α": r"$\alpha$",
}
# What Markdown reads as markup; an underscore inside of a word is none.
MARKUP = re.compile(r"[\\|*<`$]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class Cell:
    """One cell: what is printed, and the unrounded values behind it.

    Args:
        text: as printed.
        best: printed bold.
        small: printed small behind the text, for instance a gain.
        values: name of a part -> value, for the CSV; the part "" is the cell itself.
    """

    text: str
    best: bool = False
    small: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


MISSING = Cell("–")


def three(value: float) -> str:
    """Three significant digits, in full up to a million: ``0.0123``, ``17.8``, ``1,270``, ``2`` for 2.0."""
    if abs(value) < 1000 and math.isclose(value, round(value), rel_tol=1e-9):
        return f"{value:.0f}"
    if not math.isfinite(value) or value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = 2 - math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def label(text: Any) -> Cell:
    """A cell that names its row: methods and corpora as they are written, in the CSV as they are called."""
    return Cell(NAMES.get(text, str(text)), values={"": text})


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header.

    Args:
        caption: what is shown, unit and better direction, one sentence.
        header: a title a column.
        rows: as many cells each.
        labels: how many columns on the left name the row; they are aligned left.
        breaks: indices of rows before which a rule is drawn.
        notes: sentences below the table, one a line.
        protocols: under which its figures were measured, one sentence: in the caption, and below the
            table where no caption is printed.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    labels: int = 1
    breaks: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    protocols: str = ""

    def where(self, title: str, texts: Collection[str]) -> Table:
        """The rows that have one of ``texts`` in the column ``title``, as printed or as in the CSV.

        Raises:
            ValueError: there is no such column.
        """
        if title not in self.header:
            raise ValueError(f"no column {title!r}: there are {', '.join(self.header)}")
        at = list(self.header).index(title)
        kept = [
            index
            for index, row in enumerate(self.rows)
            if {row[at].text, str(row[at].values.get("", ""))} & set(texts)
        ]
        breaks = {
            place
            for place, (before, after) in enumerate(pairwise(kept), 1)
            if any(before < index <= after for index in self.breaks)
        }
        return replace(self, rows=[self.rows[index] for index in kept], breaks=frozenset(breaks))

    def markdown(self) -> str:
        """GitHub's Markdown: the table, then the protocols and notes."""
        numbers = len(self.header) - self.labels
        lines = [
            "| " + " | ".join(map(plain, self.header)) + " |",
            "|" + "---|" * self.labels + "---:|" * numbers,
        ]
        for row in self.rows:
            lines.append("| " + " | ".join(map(_markdown_cell, row)) + " |")
        below = [*([self.protocols] if self.protocols else []), *self.notes]
        if below:
            *others, last = map(plain, below)
            lines += ["", *[f"{note}<br>" for note in others], last]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        r"""A ``table`` environment; needs ``\usepackage{booktabs}``."""
        columns = "l" * self.labels + "r" * (len(self.header) - self.labels)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(f'{self.caption} {self.protocols}'.strip())}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(escape, self.header)) + r" \\",
            r"\midrule",
        ]
        for index, row in enumerate(self.rows):
            if index in self.breaks:
                lines.append(r"\midrule")
            lines.append(" & ".join(map(_latex_cell, row)) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par{{\footnotesize {escape(note)}}}" for note in self.notes]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def csv(self) -> str:
        """Values to ten digits, a column a part: ``alpha 0``, ``alpha 0 n``, ``alpha 0 std``.

        The digits beyond depend on the machine's order of summation.
        """
        parts = [
            sorted({"", *(part for row in self.rows for part in row[i].values)})
            for i in range(len(self.header))
        ]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            f"{title} {part}".strip()
            for title, names in zip(self.header, parts, strict=True)
            for part in names
        )
        for row in self.rows:
            writer.writerow(
                _number(cell.values.get(part, ""))
                for cell, names in zip(row, parts, strict=True)
                for part in names
            )
        return out.getvalue()


def _number(value: Any) -> Any:
    return f"{value:.10g}" if isinstance(value, float) else value


def escape(text: str) -> str:
    """``text`` as LaTeX: special characters stand for themselves."""
    return "".join(LATEX.get(character, character) for character in text)


def _latex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{escape(cell.text)}}}" if cell.best else escape(cell.text)
    return rf"{text} {{\scriptsize {escape(cell.small)}}}" if cell.small else text


def _markdown_cell(cell: Cell) -> str:
    text = f"**{plain(cell.text)}**" if cell.best else plain(cell.text)
    return f"{text} <sub>{plain(cell.small)}</sub>" if cell.small else text


def plain(text: str) -> str:
    """``text`` as Markdown in which every character stands for itself, in a table's cell too."""
    return MARKUP.sub(r"\\\g<0>", text)
