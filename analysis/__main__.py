"""``python -m analysis results/methods``: the runs of a folder as a Markdown table.

``--into docs/methods.md`` puts it there, between ``<!-- table: methods -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.load import load
from analysis.tables.methods import methods_table


def placed(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between ``<!-- table: name -->`` and ``<!-- end -->``.

    Raises:
        KeyError: the text has no such place.
    """
    start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise KeyError(f"no place for the table: want {start.strip()} and {end}")
    return f"{before}{start}\n{table}\n{end}{after}"


def main() -> int:
    """Prints or places the table; 2 where there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument("results", help="a folder with records, for instance results/methods")
    parser.add_argument("--metric", help="by default the first perplexity there is")
    parser.add_argument("--into", type=Path, help="a Markdown file with a place for the table")
    options = parser.parse_args()
    try:
        runs = load(options.results).runs
        known = [str(column) for column in runs if str(column).startswith("perplexity/")]
        table = methods_table(runs, options.metric or (known or ["perplexity"])[0])
        if options.into is None:
            print(table, end="")
            return 0
        text = options.into.read_text(encoding="utf-8")
        done = placed(text, Path(options.results).name, table)
        options.into.write_text(done, encoding="utf-8")
    except (FileNotFoundError, KeyError) as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
