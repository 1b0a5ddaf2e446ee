"""Runs mirrored in Weights & Biases, offline or on its server, read from the record's own files.

The tracker puts the record's files beside each W&B run, so nothing here is sampled or rounded as
W&B's history is, and the frames are those of the folder of records that was mirrored.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from analysis.frames import Entry
from analysis.load import WANDB, read_entry
from analysis.progress import track
from harness.inputs.assets import cache_directory
from harness.records.record import BLOCKS, CONFIG, LAYERS, RECORD, UPLOADED

FILES = [f"{UPLOADED}/{name}" for name in (CONFIG, RECORD, LAYERS, BLOCKS)]
DOWNLOADS = 16  # at once
PAGE = 200  # runs asked for at once
logger = logging.getLogger(__name__)


class ProjectError(ValueError):
    """A W&B project that can't be read; the message is one line that says what to do."""


class Api(Protocol):
    """What is used of :class:`wandb.Api`."""

    def runs(self, path: str, *, per_page: int) -> Iterable[Any]:
        """The runs of ``entity/project``."""
        ...


def entries(source: str) -> Iterator[Entry]:
    """The runs of ``wandb:entity/project`` or of a folder of local W&B runs.

    A run without a record (unfinished, or another program's) is named in the log and left out.

    Raises:
        ProjectError: there is no account, no such project, or no way to the server.
    """
    if source.startswith(WANDB):
        return project_entries(source.removeprefix(WANDB))
    return folder_entries(Path(source))


def folder_entries(folder: Path) -> Iterator[Entry]:
    """The runs in W&B's folder, or the one run that ``folder`` is."""
    alone = folder.name.startswith(("offline-run-", "run-"))
    runs = [folder] if alone else [*folder.glob("offline-run-*"), *folder.glob("run-*")]
    for run in track(sorted(runs), "read W&B runs"):
        yield from run_entry(run / "files" / UPLOADED, str(run))


def run_entry(folder: Path, name: str) -> Iterator[Entry]:
    """The run whose record's files are in ``folder``, if they are."""
    if not folder.is_dir():
        logger.warning("left out: %s: a W&B run of another program", name)
    elif not (folder / RECORD).exists():
        logger.warning("left out: %s: unfinished, it has no %s", name, RECORD)
    elif (entry := read_entry(folder)) is not None:
        yield entry


def project_entries(project: str, api: Api | None = None) -> Iterator[Entry]:
    """The runs of ``entity/project`` on W&B's server; what has been fetched before is kept.

    Raises:
        ProjectError: see :func:`entries`.
    """
    if not re.fullmatch(r"[^/.][^/]*/[^/.][^/]*", project):
        raise ProjectError(f"{WANDB}{project}: want {WANDB}entity/project")
    cache = cache_directory() / "wandb" / project
    pool = ThreadPoolExecutor(DOWNLOADS)
    try:
        with explained(project):
            runs = list((api or _api()).runs(project, per_page=PAGE))
        folders = pool.map(lambda run: fetched(run, cache), runs)
        for run in track(runs, "fetch W&B runs"):
            with explained(project):
                folder = next(folders)
            yield from run_entry(folder / UPLOADED, f"{WANDB}{project}/{run.id}")
    finally:
        pool.shutdown(cancel_futures=True)


def fetched(run: Any, cache: Path) -> Path:
    """The folder with the record's files of a W&B run, fetched unless the run is as it was then."""
    version = re.sub(r"\W", "", f"{run.heartbeat_at or run.created_at}{run.state}")
    home = cache / run.id
    target = home / version
    if target.exists():
        return target
    home.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=home, prefix=".part-"))
    try:
        for file in run.files(names=FILES):
            if file.size:  # W&B may answer with an empty file for one that is not there
                file.download(root=str(part), replace=True).close()
        for old in home.glob("[!.]*"):
            shutil.rmtree(old, ignore_errors=True)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


@contextmanager
def explained(project: str) -> Iterator[None]:
    """Turns what W&B raises into one line that says what to do."""
    import wandb

    try:
        yield
    except (wandb.Error, ValueError) as error:  # ValueError: there is no such project
        advice = "see that the server can be reached and the project is there, then try again"
        if isinstance(error, wandb.errors.UsageError):
            advice = "wandb login, or set WANDB_API_KEY"
        elif isinstance(error, wandb.errors.AuthenticationError):
            advice = "see that the server can be reached and the key is right (wandb login)"
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ProjectError(f"{WANDB}{project}: {reason}; {advice}") from None


def _api() -> Api:
    import wandb

    return cast(Api, wandb.Api())
