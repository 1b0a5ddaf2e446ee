"""The page of ``python -m harness.command.inspect``: HTML with drawings in it, no script, no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from harness.command.inspection import Inspection, Role, settings

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.15rem 1.2rem 0.15rem 0; text-align: left; font-variant-numeric: tabular-nums; }
.number { text-align: right; }
th { border-bottom: 1px solid #999; }
figure { display: inline-block; margin: 0 1.5rem 1rem 0; }
figcaption { font-size: 0.9em; }
rect { fill: #4269a4; }
"""
WIDTH, HEIGHT = 260, 90


def page(run: Inspection) -> str:
    """The whole page."""
    name = escape(run.record.run)
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>',
        f"<style>{STYLE}</style><h1>{name}</h1>",
        table((), settings(run.record).items()),
    ]
    if not run.layers:
        return "".join([*parts, "<p>Nothing is quantised in this run.</p></html>"])
    parts += ["<h2>Linears by role</h2>", table(HEADER, map(cells, run.roles))]
    parts += [f"<p>{MEANING}</p>"]
    worst = [(one, error_text(error)) for one, error in run.worst()]
    parts += ["<h2>The worst linears</h2>", table(("linear", "relative error"), worst)]
    parts += ["<h2>Weights on their grid</h2>", histograms(run.histograms)]
    return "".join([*parts, "</html>"])


HEADER = ("role", "linears", "bits", "relative error", "worst")
NUMBERS = ("linears", "relative error", "worst")  # columns of these
NO_CODES = "Not kept: codes are in a saved checkpoint only, with save=compressed_tensors."
MEANING = (
    "Relative error: the part of the energy of a role's outputs that is lost, summed over the blocks; "
    "worst: that of the worst linear among them."
)
HISTOGRAM = (
    "A bar for each code, the lowest value at the left, as high as its share of the weights."
)


def error_text(error: float) -> str:
    """An error as a reader compares it with the one below: four digits, no exponent unless it is tiny."""
    return f"{error:#.4g}"


def cells(role: Role) -> list[str]:
    """A role's row: what it was quantised to, and what that cost."""
    ways = ", ".join(
        f"{bits} ({effective:.3f} effective)" + (f" × {count}" if len(role.ways) > 1 else "")
        for (bits, effective), count in role.ways.items()
    )
    return [role.name, str(role.linears), ways, error_text(role.error), error_text(role.worst)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; numbers end at the right."""
    kinds = [' class="number"' if name in NUMBERS else "" for name in header]

    def line(tag: str, texts: Sequence[str]) -> str:
        styles = kinds or [""] * len(texts)
        made = (
            f"<{tag}{one}>{escape(text)}</{tag}>" for text, one in zip(texts, styles, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    head = line("th", header) if header else ""
    return f"<table>{head}{''.join(line('td', row) for row in rows)}</table>"


def histograms(found: Mapping[str, Sequence[int]] | None) -> str:
    """A drawing for each role, or why there is none."""
    if found is None:
        return f"<p>{NO_CODES}</p>"
    drawn = (
        f"<figure>{bars(counts)}<figcaption>{escape(role)}: {sum(counts):,} weights on "
        f"{len(counts)} codes</figcaption></figure>"
        for role, counts in found.items()
    )
    return f"<p>{HISTOGRAM}</p>{''.join(drawn)}"


def bars(counts: Sequence[int]) -> str:
    """One bar a code, the lowest value at the left, as high as its share."""
    most, step = max(counts), WIDTH / len(counts)
    drawn = "".join(
        f'<rect x="{index * step:.2f}" y="{HEIGHT * (1 - count / most):.2f}" '
        f'width="{0.9 * step:.2f}" height="{HEIGHT * count / most:.2f}">'
        f"<title>{index}: {count}</title></rect>"
        for index, count in enumerate(counts)
    )
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{drawn}</svg>'
