"""What a killed process has left of a run that is finished."""

from __future__ import annotations

import os

from harness.records.disk import remove
from harness.records.locks import Lock
from harness.records.record import (
    BLOCKS,
    CHECKPOINT,
    LAYERS,
    MIRROR,
    Record,
    drop_checkpoints,
    read_rows,
)
from harness.settings.config import Config


def tidy(config: Config, record: Record) -> None:
    """Completes and removes what a killed process left of a finished run, unless another holds it.

    A mirror that was cut off is made again from what lies on disk.
    """
    directory, tracker = config.directory, config.tracker
    lock, cut = Lock(directory), directory / MIRROR
    left = (lock.folder, cut, directory / CHECKPOINT)
    if not any(map(os.path.lexists, left)) or not lock.take():
        return
    try:
        if os.path.lexists(cut):
            tracker.start(record, directory)
            for row in read_rows(directory / LAYERS):
                tracker.layer(row)
            for row in read_rows(directory / BLOCKS):
                tracker.block(row)
            tracker.finish(record)
            remove(cut)
        drop_checkpoints(directory)
    finally:
        lock.release()
