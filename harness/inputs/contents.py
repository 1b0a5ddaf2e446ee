"""What the inputs of a run hold, as hashes: a run is of contents, wherever its files lie.

A plugin that reads files says so by a method ``contents()``: the fields that name them -> a function that
gives a hash of what they hold, or the commit of something on the hub. Such a field stands in a run's
identity by its content alone: a folder that is moved is the same input, a file that is overwritten in
place is another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.inputs import assets

Key = tuple[str, ...]  # the names on the way to a value in a configuration
Contents = Mapping[str, Callable[[], str]]  # what a plugin's method contents() returns
RACY = 2 * 10**9  # ns: the coarsest clock that file systems keep times by
LARGE = 2 * 10**9  # bytes: so many take seconds to read


def contents_of(value: Any) -> dict[Key, str]:
    """The contents of all files that the plugins in ``value`` read, by the fields that name them.

    Raises:
        ValueError: in one line, for a file that is missing or is being written.
    """
    return {key: content() for key, content in readers(value)}


def readers(value: Any, where: Key = ()) -> Iterator[tuple[Key, Callable[[], str]]]:
    """The fields in ``value`` that name files, and what tells their content; reads nothing."""
    if is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "contents"):
            for name, content in value.contents().items():
                yield (*where, name), content
        parts: Mapping[Any, Any] = {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, Mapping):
        parts = value
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    else:
        return
    for name, part in parts.items():
        yield from readers(part, (*where, str(name)))


def digest(*parts: str) -> str:
    """One sha256 of several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def files_hash(files: Mapping[str, Path]) -> str:
    """One hash of several files and the names by which they are known, wherever they lie."""
    return digest(*(f"{name} {file_hash(path)}" for name, path in sorted(files.items())))


def file_hash(path: Path) -> str:
    """The sha256 of a file, remembered in the cache directory while its size, times and inode stay.

    What was changed within the last two seconds may be changed once more without its times showing it
    and is read again.

    Raises:
        ValueError: the file can't be read, or is being written.
    """
    try:
        state, now = _state(path), time.time_ns()
        if now - max(state[1:3]) < RACY:
            return _read(path, state)
        return _remembered(path.resolve(), state)
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from None


def _state(path: Path) -> tuple[int, ...]:
    """Size, times and inode. A copy may keep the time of the change of content, not that of the inode."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@lru_cache(maxsize=4096)
def _remembered(path: Path, state: tuple[int, ...]) -> str:
    known = assets.cache_directory() / "hashes" / f"{digest(str(path))}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(known.read_text())
        if found == _noted(state, found["sha256"]):
            return str(found["sha256"])
    if state[0] > LARGE:
        assets.say(f"hashing {path} ({state[0] / 1e9:.0f} GB), once as long as it stays as it is")
    sha256 = _read(path, state)
    with suppress(OSError):  # a cache that can't be written costs time and nothing else
        _remember(known, json.dumps(_noted(state, sha256)))
    return sha256


def _noted(state: tuple[int, ...], sha256: str) -> dict[str, object]:
    """What is remembered of a file, with a hash of its own: a wrong one would name another run."""
    noted: dict[str, object] = {"state": list(state), "sha256": sha256}
    return noted | {"noted": digest(json.dumps(noted))}


def _remember(known: Path, text: str) -> None:
    known.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=known.parent, suffix=".partial")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(partial, known)


def _read(path: Path, state: tuple[int, ...]) -> str:
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if _state(path) != state:
        raise ValueError(f"{path}: is being written; start again when it is complete")
    return sha256
