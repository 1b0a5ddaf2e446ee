"""What a run finds on disk that is not its result: named in one line each, and left where it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.inputs.contents import Key
from harness.records.record import NewerError, Record, RecordError, read_record
from harness.records.whole import intact, lacking
from harness.settings.config import Config
from harness.settings.flat import value_at


def notices(config: Config) -> Iterator[str]:
    """Why the record in the run's directory does not count, and which records beside it are stale.

    A record is stale where the same settings read the same files, which held something else.
    """
    for directory in config.alike():
        try:
            record = read_record(directory)
        except (FileNotFoundError, NewerError):  # a newer one is refused
            continue
        except RecordError as error:
            if directory == config.directory:
                yield f"{error}: the run is made again"
            continue
        if record.status == "failed":
            continue
        if directory != config.directory:
            changed = [key for key in config.contents if _has_changed(config, record, key)]
            if changed:
                what = "the checkpoint" if changed[0][0] == "model" else "an input"
                said = ", ".join(config.setting(key) for key in changed)
                yield f"{directory}: {what} has changed since this record ({said}): another run"
        elif reason := intact(directory, record):
            yield f"{directory}: {reason}: the run is made again"
        elif kinds := lacking(directory, record, config.saves):
            yield f"{directory}: done, but without save={','.join(kinds)}: the run is made again for it"


def _has_changed(config: Config, record: Record, key: Key) -> bool:
    """Whether an input lies where it lay then and holds something else."""
    before = record.contents.get(".".join(key))
    if before is None or before == config.contents[key]:
        return False
    return _places(value_at(config.identity(), key)) == _places(value_at(record.config, key))


def _places(value: Any) -> list[Path]:
    """The paths in a setting, absolute."""
    values = value if isinstance(value, list) else [value]
    return [Path(one).expanduser().resolve() for one in values]
