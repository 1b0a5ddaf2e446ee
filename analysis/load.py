"""Records on disk or in Weights & Biases as four tidy frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from analysis.frames import Entry, Frames, frames
from analysis.progress import track
from harness.record import BLOCKS, LAYERS, RECORD, RecordError, read_record, read_rows

__all__ = ["Entry", "Frames", "load"]

WANDB = "wandb:"
logger = logging.getLogger(__name__)


def load(source: str | Path) -> Frames:
    """All runs of ``source``; a damaged or foreign one is named in the log and left out.

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
    """Every run below ``root``, in the order of paths."""
    for path in track(sorted(root.rglob(RECORD)), "read records"):
        folder = path.parent
        try:
            record, layers = read_record(folder), read_rows(folder / LAYERS)
            blocks = read_rows(folder / BLOCKS)
        except (RecordError, OSError) as error:
            logger.warning("left out: %s", error)
            continue
        yield Entry(record, layers, blocks, str(path))
