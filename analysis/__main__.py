"""Tables, figures and the dashboard of a set of runs.

    python -m analysis RESULTS [--out DIR]             everything
    python -m analysis RESULTS --into FILE ...         tables into the places of documents
    python -m analysis dashboard RESULTS [--out FILE]  only the dashboard
    python -m analysis claims RESULTS [--out FILE]     the papers' claims, judged by these runs
    python -m analysis recipe RESULTS [--out FILE]     which setting these runs advise

RESULTS is a folder of records, a folder of offline W&B runs, or wandb:entity/project. Places in
documents stand between <!-- table: SET --> and <!-- end -->: docs/analysis.md has all forms of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from analysis.documents import fill
from analysis.frames import Frames
from analysis.load import WANDB, load
from analysis.plugins import plugins
from analysis.progress import track
from analysis.tables.base import Table


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        print(f"error: {message} (python -m analysis --help)", file=sys.stderr)
        sys.exit(2)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one of the commands above; 2 where there is nothing to show."""
    words = sys.argv[1:] if words is None else list(words)
    commands = {"dashboard": dashboard, "claims": claims, "recipe": recipe}
    command = commands.get(words[0]) if words else None
    parser = Parser(
        prog="python -m analysis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", metavar="RESULTS", help="a folder, or wandb:entity/project")
    help_out = (
        "folder (by default RESULTS, or paper for W&B) or file (dashboard.html, claims.md in it)"
    )
    parser.add_argument("--out", type=Path, help=help_out)
    parser.add_argument(
        "--into", type=Path, nargs="+", metavar="FILE", help="documents with places"
    )
    options = parser.parse_args(words[1:] if command else words)
    where = Path("paper") if options.results.startswith(WANDB) else Path(options.results)
    try:
        frames = load(options.results)
        if frames.runs.empty:
            raise FileNotFoundError(f"{options.results}: no record there")
        if command:
            command(frames, options.out, where)
        elif options.into:
            fill(options.into, where.resolve().name, built(frames))
        else:
            everything(frames, options.out or where)
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def everything(frames: Frames, out: Path) -> None:
    """Tables (md, tex, csv), figures (pdf, png, caption) and the dashboard below ``out``."""
    tables = built(frames)
    write_tables(tables, out / "tables")
    drawn = write_figures(frames, out / "figures")
    dashboard(frames, out / "dashboard.html", out)
    print(
        f"{len(frames.runs)} runs: {len(tables)} tables, {drawn} figures and a dashboard in {out}"
    )


def built(frames: Frames) -> dict[str, Table]:
    """Every table that has something to show, by the name of its file."""
    from analysis import tables

    made = {}
    found = plugins(tables)
    for name in track(list(found), "tables"):
        table = found[name].build(frames)
        if table is not None:
            made[name] = table
    return made


def write_tables(tables: Mapping[str, Table], folder: Path) -> None:
    """Three files a table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        forms = {"md": table.markdown(), "tex": table.latex(), "csv": table.csv()}
        for suffix, text in forms.items():
            (folder / f"{name}.{suffix}").write_text(text, encoding="utf-8")


def write_figures(frames: Frames, folder: Path) -> int:
    """Three files a figure; how many figures there are."""
    from analysis import figures

    drawn = 0
    found = plugins(figures)
    for name in track(list(found), "figures"):
        drawing = found[name].draw(frames)
        if drawing is not None:
            drawing.write(folder / name)
            drawn += 1
    return drawn


def dashboard(frames: Frames, out: Path | None, where: Path) -> None:
    """One page that needs no network."""
    from analysis import dashboard as page

    _write(out or where / "dashboard.html", page.build(frames))


def claims(frames: Frames, out: Path | None, where: Path) -> None:
    """The papers' claims beside our figures."""
    from analysis.claims_page import page

    _write(out or where / "claims.md", page(frames, where.resolve().name))


def recipe(frames: Frames, out: Path | None, where: Path) -> None:
    """The best composition of every bit width, and what comes close."""
    from analysis.recipe_page import page

    _write(out or where / "recipe.md", page(frames, where.resolve().name))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
