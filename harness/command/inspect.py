"""``qep-bench inspect RUN``: what was quantised to what, and what it cost.

    qep-bench inspect results/local/RUN                       as text
    qep-bench inspect results/local/RUN --html page.html      and as one HTML page
    qep-bench inspect results/local/RUN --prompt "The sea"    both models go on from there

``python run.py inspect`` and ``python -m harness.command.inspect`` are the same.

Histograms of the weights on their grid need a run with save=compressed_tensors, the prompt one with that
or save=dense.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.command.inspect_page import HEADER, NO_CODES, NUMBERS, cells, error_text, page
from harness.command.inspection import Inspection, settings
from harness.command.programs import program
from harness.records.record import RECORD, RecordError

BARS = " ▁▂▃▄▅▆▇█"
# Kinds of checkpoints that go on from a prompt: the first there is.
ASKED = ("dense", "compressed_tensors")
BAD = 2


class InspectError(ValueError):
    """What can't be shown; the message is one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Shows a run; 0 done, 2 can't be done."""
    options = parsed(arguments)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    try:
        run = inspected(options.run)
        if options.prompt is not None and not saved(run):
            raise InspectError(
                f"{run.directory}: --prompt needs a run with save={' or '.join(ASKED)}"
            )
        if options.html and not options.html.parent.is_dir():
            raise InspectError(f"--html {options.html}: no such folder {options.html.parent}")
        if options.prompt is not None and not options.prompt.strip():
            raise InspectError("--prompt: want a text")
        show(run, console)
        if options.html:
            write(options.html, page(run))
            console.print(f"page: {options.html}")
        if options.prompt is not None:
            for title, text in continued(run, options.prompt, options.tokens).items():
                console.print(f"\n{title}", style="bold")
                console.print(text)
    except InspectError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, help="the folder of a run, for instance results/local/RUN"
    )
    parser.add_argument("--html", type=Path, help="a file for the page")
    parser.add_argument("--prompt", help="a text that both models go on from")
    parser.add_argument("--tokens", type=_positive, default=40, help="how far (40)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: want a number from 1 up")
    return int(text)


def write(path: Path, text: str) -> None:
    """Leaves the page in a file.

    Raises:
        InspectError: the file can't be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InspectError(f"--html {path}: {error.strerror}") from None


def inspected(directory: Path) -> Inspection:
    """The run in a folder.

    Raises:
        InspectError: there is none, or it is damaged.
    """
    try:
        run = Inspection.of(directory)
        run.histograms  # noqa: B018  (read here: a damaged checkpoint is told before anything is shown)
        return run
    except FileNotFoundError:
        known = [str(path.parent) for path in directory.parent.glob(f"*/{RECORD}")]
        near = get_close_matches(str(directory), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InspectError(f"{directory}: no run with a record{hint}") from None
    except RecordError as error:
        raise InspectError(str(error)) from None


def show(run: Inspection, console: Console) -> None:
    """Prints a run as text."""
    console.print(run.record.run, style="bold")
    console.print(shown((), settings(run.record).items()))
    if not run.layers:
        if run.record.status == "done":
            console.print("\nNothing is quantised in this run.")
        return
    console.print("\nLinears by role", style="bold")
    console.print(shown(HEADER, map(cells, run.roles), NUMBERS))
    console.print("\nThe worst linears", style="bold")
    worst = [(name, error_text(error)) for name, error in run.worst()]
    console.print(shown(("linear", "relative error"), worst, ("relative error",)))
    console.print("\nWeights on their grid, lowest value first", style="bold")
    if run.histograms is None:
        console.print(NO_CODES)
        return
    drawn = [
        (role, f"{len(counts)} codes", bars(counts)) for role, counts in run.histograms.items()
    ]
    console.print(shown((), drawn))


def shown(header: Sequence[str], rows: Any, numbers: Sequence[str] = ()) -> Table:
    """A table of texts, in which brackets are no markup; the columns ``numbers`` end at the right."""
    found = Table(box=None, pad_edge=False, show_header=bool(header), header_style="bold")
    for name in header:
        found.add_column(name, justify="right" if name in numbers else "left")
    for row in rows:
        found.add_row(*map(Text, row))
    return found


def bars(counts: Sequence[int], most: int = 64) -> str:
    """One character a code, or for several neighbours where there are more than ``most``."""
    step = -(-len(counts) // most)
    sums = [sum(counts[start : start + step]) for start in range(0, len(counts), step)]
    top = len(BARS) - 1
    return "".join(BARS[-(-one * top // max(sums))] for one in sums)


def saved(run: Inspection) -> list[Path]:
    """The checkpoints of a run that can go on from a text."""
    return [path for name in ASKED if (path := run.directory / name).is_dir()]


def continued(run: Inspection, prompt: str, tokens: int) -> dict[str, str]:
    """How the full-precision and the quantised model go on from a text, the likeliest token each time.

    Raises:
        InspectError: the full-precision model is not where it was, or the quantised one can't be read.
    """
    import torch

    from harness.inputs.models import HubModel
    from harness.settings.construct import plugin

    problems: list[str] = []
    source = plugin(run.record.config["model"], "model", problems, "load")
    if problems:
        raise InspectError("; ".join(problems))
    try:
        loaded, quantized = source.load(), HubModel(str(saved(run)[0])).load()
    except ValueError as error:
        raise InspectError(str(error)) from None
    ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids
    found = {}
    models: dict[str, Any] = {"full precision": loaded.model, "quantised": quantized.model}
    for title, model in models.items():
        with torch.inference_mode():
            made = model.generate(ids, max_new_tokens=tokens, do_sample=False)
        found[title] = loaded.tokenizer.decode(made[0], skip_special_tokens=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
