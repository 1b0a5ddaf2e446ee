"""``python -m analysis results/methods``: the runs of a folder as a Markdown table."""

from __future__ import annotations

import argparse
import sys

from analysis.load import load
from analysis.tables.methods import methods_table


def main() -> int:
    """Prints the table; 2 where there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument("results", help="a folder with records, for instance results/methods")
    parser.add_argument("--metric", help="by default the first perplexity there is")
    options = parser.parse_args()
    try:
        runs = load(options.results).runs
        metric = options.metric or next(
            (c for c in runs if c.startswith("perplexity/")), "perplexity"
        )
        print(methods_table(runs, metric), end="")
    except (FileNotFoundError, KeyError) as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
