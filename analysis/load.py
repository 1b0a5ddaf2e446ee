"""Records on disk or in Weights & Biases as four tidy frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from analysis.frames import Entry, Frames, frames
from analysis.progress import track
from harness.records.record import BLOCKS, LAYERS, RECORD, RecordError, read_record, read_rows
from harness.records.whole import intact

__all__ = ["Entry", "Frames", "load"]

WANDB = "wandb:"
MIRRORS = "wandb"  # the folder beside the runs of a set where W&B leaves its own
logger = logging.getLogger(__name__)


def load(source: str | Path) -> Frames:
    """All runs of ``source``; a damaged, incomplete or foreign one is named in the log and left out.

    Incomplete is a record beside which there are fewer rows of linears and blocks than it has.

    Args:
        source: a folder of records, searched to any depth; a folder of offline W&B runs
            (``offline-run-*``, or one of them); or ``wandb:entity/project``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the W&B project can't be read; one line.
    """
    text, root = str(source), Path(source)
    if text.startswith(WANDB) or is_offline(root):
        from analysis import wandb_runs  # needs wandb, which takes a second to import

        return frames(wandb_runs.entries(text))
    if not root.is_dir():
        raise FileNotFoundError(f"{source}: no such folder of records")
    return frames(folder_entries(root))


def is_offline(folder: Path) -> bool:
    """Whether ``folder`` is where W&B leaves offline runs, or one such run."""
    return folder.name.startswith("offline-run-") or any(folder.glob("offline-run-*"))


def folder_entries(root: Path) -> Iterator[Entry]:
    """Every run below ``root``, in the order of paths; not the copies in W&B's folders."""
    found = []
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if name != MIRRORS]
        for name in inside:
            if (link := Path(folder, name)).is_symlink() and (link / RECORD).exists():
                logger.warning("left out: %s: a link; its run counts where it lies", link)
        if RECORD in (*files, *inside):  # a folder of that name is a damaged record
            found.append(Path(folder))
    for path in track(sorted(found), "read records"):
        entry = read_entry(path)
        if entry is not None:
            yield entry


def read_entry(folder: Path) -> Entry | None:
    """The run whose record's files are in ``folder``; a damaged or incomplete one is named in the log."""
    try:
        record = read_record(folder)
        problem = intact(folder, record)
        if problem is not None:
            raise RecordError(f"{folder / RECORD}: {problem}")
        layers, blocks = read_rows(folder / LAYERS), read_rows(folder / BLOCKS)
        return Entry(record, layers, blocks, str(folder / RECORD))
    except (RecordError, OSError) as error:
        logger.warning("left out: %s", error)
        return None
