"""What a name on the hub stands for: the commit that the local cache has, else the one that the hub names.

A branch moves on the hub; in the cache it stays what it was when it was fetched. Runs go by the cache,
so that all of a sweep read one commit and a finished run is recognised without a network.
"""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

TIMEOUT = 10.0  # seconds
COMMIT = re.compile(r"[0-9a-f]{40}")


def cached_commit(name: str, file: str, revision: str | None, kind: str = "model") -> str | None:
    """The commit of ``name`` in the hub's local cache, seen by ``file``; None where it is not there."""
    found = cached_file(name, file, revision, kind)
    return None if found is None else found.parent.name


def cached_file(name: str, file: str, revision: str | None, kind: str = "model") -> Path | None:
    """A file of ``name`` in the hub's local cache; None where it is not there."""
    found = huggingface_hub.try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def commit(name: str, file: str, revision: str | None, kind: str = "model") -> str:
    """The commit that a run reads.

    Raises:
        OSError: the hub can't be reached, or has no such name or revision, in the hub's own words.
    """
    known = cached_commit(name, file, revision, kind)
    if known is not None:
        return known
    api = huggingface_hub.HfApi()
    return str(api.repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT).sha)


def prepared_commit(name: str) -> str | None:
    """The commit of a dataset that ``datasets`` has prepared last, which is what it reads offline."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    found = [
        path for path in folder.glob("*/*/*") if COMMIT.fullmatch(path.name) and path.is_dir()
    ]
    return max(found, key=lambda path: path.stat().st_mtime).name if found else None
