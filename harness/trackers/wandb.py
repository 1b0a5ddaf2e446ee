"""Weights & Biases mirrors the record: config, scalars, tables, curves over depth, its very files.

Offline runs need no account; ``wandb sync`` uploads them later. The record on disk does not depend on
any of this: a server out of reach turns the mirror offline, and a mirror that breaks is given up,
each with one line that says so. docs/metrics.md names everything that is mirrored.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import platformdirs

from harness.records.disk import remove
from harness.records.record import BLOCKS, CONFIG, LAYERS, MIRROR, RECORD, UPLOADED, Record
from harness.trackers import flat
from harness.trackers.flat import Row

if TYPE_CHECKING:
    import wandb

# What W&B takes, in characters, of which it counts bytes: wandb refuses longer tags itself
# (Settings.validate_run_tags), the server longer names and groups, after the run or in `wandb sync`.
TAG, NAME = 64, 128
HISTOGRAM_BINS = 64
SAID = 300  # characters of a message
SWEEP = "WANDB_SWEEP_ID"  # set by W&B's agent in the processes that it starts
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbTracker:
    """One W&B run per run; ``mode=offline`` writes to ``<results>/<set>/wandb`` and needs no network.

    Args:
        mode: offline, online (needs an account) or disabled.
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        group: W&B group; None is the set of results.
        timeout: seconds to wait for the server, at the start and again at the end.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "qep-bench"
    entity: str | None = None
    group: str | None = None
    timeout: float = 30.0
    _open: list[Mirror] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.timeout < math.inf:
            problems.append(f"timeout={self.timeout}: must be a positive number of seconds")
        if not 0 < len(self.project) <= 128 or re.search(r"[/\\#?%:]", self.project):
            problems.append(f"project={self.project!r}: 1 to 128 characters, none of / \\ # ? % :")
        if problems:
            raise ValueError("; ".join(problems))

    def start(self, record: Record, directory: Path) -> None:
        """Opens the W&B run."""
        # The process of a sweep's agent has one W&B run, which is the job's: the full-precision
        # run that goes before it stays on disk alone.
        in_sweep = SWEEP in os.environ
        if self.mode == "disabled" or (in_sweep and record.summary["method"] == "none"):
            return
        _drop_cut(directory)
        run = self._init(record, directory, "online" if in_sweep else self.mode)
        if run is not None:
            mirror = Mirror(run, directory)
            self._open.append(mirror)
            with self._guarded(mirror):
                mirror.begin()

    def _init(self, record: Record, directory: Path, mode: str) -> wandb.Run | None:
        """A W&B run, offline where the server can't be reached in time; None where that fails too."""
        name = _new_id()
        try:
            if mode == "online":
                return self._opened(record, directory, "online", name)
        except Exception as error:  # see _guarded
            logger.warning("W&B is out of reach (%s): the mirror is offline", _line(error))
            for stub in directory.parent.glob(f"wandb/run-*-{name}"):
                shutil.rmtree(stub, ignore_errors=True)
        try:
            return self._opened(record, directory, "offline", _new_id())
        except Exception as error:
            logger.warning(
                "W&B can't start (%s): %s has no mirror, its record has everything",
                _line(error),
                record.run,
            )
            return None

    def _opened(
        self, record: Record, directory: Path, mode: Literal["online", "offline"], name: str
    ) -> wandb.Run:
        """A W&B run under the record's names, cut to what W&B takes."""
        import wandb

        settle(directory.parent / "wandb")
        with (directory / MIRROR).open("a") as file:
            file.write(f"{name}\n")
        return wandb.init(
            mode=mode,
            id=name,
            project=self.project,
            entity=self.entity,
            group=shortened(self.group or directory.parent.name, NAME),
            name=shortened(record.run, NAME),
            config=flat.configuration(record),
            tags=[shortened(tag, TAG) for tag in dict.fromkeys(flat.tags(record))],
            dir=str(directory.parent),
            settings=settings(self.timeout),
            reinit="finish_previous",
        )

    def layer(self, row: Row) -> None:
        """Keeps the row for the curves and the table."""
        for mirror in self._open:
            mirror.layers.append(row)

    def block(self, row: Row) -> None:
        """Adds a point to the curves over depth."""
        for mirror in self._open[:]:
            mirror.blocks.append(row)
            inside = [one for one in mirror.layers if one["block"] == row["block"]]
            point = flat.depth_point(row, inside)
            with self._guarded(mirror):
                mirror.run.log(point)

    def finish(self, record: Record) -> None:
        """Adds all that is known at the end and closes the W&B run."""
        for mirror in self._open[:]:
            ending = flat.ending(record, mirror.layers, mirror.blocks)
            with self._guarded(mirror):
                mirror.end(ending)
            remove(mirror.directory / MIRROR)
        self._open.clear()

    @contextmanager
    def _guarded(self, mirror: Mirror) -> Iterator[None]:
        """Only calls of W&B stand inside; when one fails the mirror is given up, never the run.

        W&B raises a dozen unrelated classes where its server or its own process lets it down.
        """
        try:
            yield
        except Exception as error:
            self._open.remove(mirror)
            logger.warning(
                "W&B failed (%s): its mirror is incomplete, the record is not; "
                "wandb sync %s uploads what there is",
                _line(error),
                mirror.run.settings.sync_dir,
            )


@dataclass(eq=False)
class Mirror:
    """An open W&B run and the rows that it has seen."""

    run: wandb.Run
    directory: Path
    layers: list[Row] = field(default_factory=list)
    blocks: list[Row] = field(default_factory=list)

    def begin(self) -> None:
        """Declares the axes: the block for curves over depth, the iteration for those of a method."""
        self.run.define_metric("block", summary="none")
        self.run.define_metric("depth/*", step_metric="block", summary="last,max")
        self.run.define_metric("iteration", summary="none")
        self.run.define_metric("trace/*", step_metric="iteration", summary="last,min")
        self.save((CONFIG,))

    def end(self, ending: flat.Ending) -> None:
        """Logs what is known at the end, puts the record's files beside it and closes the run."""
        import wandb

        for point in ending.traces:
            self.run.log(point)
        final: dict[str, Any] = dict(ending.numbers)
        for name, rows in ending.tables.items():
            most = wandb.Table.MAX_ARTIFACT_ROWS
            if len(rows) > most:
                logger.warning(
                    "W&B's table %s has the first %s of %s rows; its files in %s/ have all",
                    *(name, f"{most:,}", f"{len(rows):,}", UPLOADED),
                )
                rows = rows[:most]
            columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
            data: list[Any] = [[row.get(column) for column in columns] for row in rows]
            final[name] = wandb.Table(columns=columns, data=data)
        for name, values in ending.histograms.items():
            final[name] = wandb.Histogram(values, num_bins=HISTOGRAM_BINS)
        self.run.log(final)
        self.run.summary.update(ending.labels)
        if ending.status != "done":
            self.run.tags = (*(self.run.tags or ()), ending.status)
        self.save((RECORD, LAYERS, BLOCKS))
        # A run given up as hopeless ended as it should.
        self.run.finish(exit_code=1 if ending.status == "failed" else 0)

    def save(self, names: Iterable[str]) -> None:
        """Copies files of the record into the W&B run: a link would change with a repeated run."""
        target = Path(self.run.settings.files_dir) / UPLOADED
        target.mkdir(exist_ok=True)
        for name in names:
            if (self.directory / name).exists():
                shutil.copyfile(self.directory / name, target / name)
                self.run.save(target / name, base_path=target.parent, policy="now")


def settings(timeout: float) -> wandb.Settings:
    """W&B without its console capture, machine statistics, git and host; waits are limited."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        host="",
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
        login_timeout=timeout,
        init_timeout=timeout,
        finish_timeout=timeout,
        finish_timeout_raises=True,
    )


def settle(folder: Path) -> None:
    """Gives W&B a place below ``folder`` for what it keeps at home, where it can't write there.

    Without one it stages no table, and the mirror would be lost.
    """
    homes = {
        "WANDB_DATA_DIR": platformdirs.user_data_dir("wandb"),
        "WANDB_CACHE_DIR": platformdirs.user_cache_dir("wandb"),
    }
    for variable, home in homes.items():
        try:
            Path(os.environ.get(variable, home)).mkdir(parents=True, exist_ok=True)
        except OSError:
            os.environ[variable] = str(folder / "home")


def shortened(text: str, most: int) -> str:
    """``text``, or as much of its beginning as fits into ``most`` bytes with a hash of all of it.

    What differs stays different.
    """
    if len(text.encode()) <= most:
        return text
    tail = f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text.encode()[: most - len(tail)].decode(errors="ignore") + tail


def _drop_cut(directory: Path) -> None:
    """Removes the mirrors of a run that a kill has cut off: it is about to get a whole one."""
    try:
        names = (directory / MIRROR).read_text().split()
    except (OSError, ValueError):  # none, or damaged: its cut mirror stays
        names = []
    for name in names:
        if re.fullmatch("[0-9a-f]{8}", name):
            for path in (directory.parent / "wandb").glob(f"*run-*-{name}"):
                shutil.rmtree(path, ignore_errors=True)
    remove(directory / MIRROR)


def _new_id() -> str:
    return uuid.uuid4().hex[:8]


def _line(error: BaseException) -> str:
    """What went wrong: some of W&B's messages say it in their second line only."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= SAID else f"{said[:SAID]} ..."
