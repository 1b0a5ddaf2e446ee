"""The page of ``python -m harness.command.inspect``: HTML with drawings in it, no script, no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from harness.command.inspection import Inspection, Role, settings

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.15rem 0.8rem 0.15rem 0; text-align: left; font-variant-numeric: tabular-nums; }
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
    worst = [(one, f"{error:.4g}") for one, error in run.worst()]
    parts += ["<h2>The worst linears</h2>", table(("linear", "relative error"), worst)]
    parts += ["<h2>Weights on their grid</h2>", histograms(run.histograms)]
    return "".join([*parts, "</html>"])


HEADER = ("role", "linears", "bits", "relative error", "worst")


def cells(role: Role) -> list[str]:
    """A role's row: what it was quantised to, and what that cost."""
    ways = ", ".join(
        f"{bits} ({effective:.3f} effective)" + (f" × {count}" if len(role.ways) > 1 else "")
        for (bits, effective), count in role.ways.items()
    )
    return [role.name, str(role.linears), ways, f"{role.error:.4g}", f"{role.worst:.4g}"]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = f"<tr>{''.join(f'<th>{escape(one)}</th>' for one in header)}</tr>" if header else ""
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table>{head}{body}</table>"


def histograms(found: Mapping[str, Sequence[int]] | None) -> str:
    """A drawing for each role, or why there is none."""
    if found is None:
        return "<p>The codes are in a saved checkpoint only: save=compressed_tensors.</p>"
    return "".join(
        f"<figure>{bars(counts)}<figcaption>{escape(role)}</figcaption></figure>"
        for role, counts in found.items()
    )


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
