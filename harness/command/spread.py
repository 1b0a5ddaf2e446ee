"""Sweeps over several processes: Hydra's launchers, with the cores divided among their workers.

Workers print nothing. What lies on disk is the result, so the process that a person looks at tells
of every run when its record appears there, whatever launcher did it and on whichever machine.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from harness.command.cards import cards_of
from harness.command.cluster import cluster
from harness.command.console import Console
from harness.command.orphans import followed, mark
from harness.records.locks import POLL, Lock
from harness.records.record import RECORD, Record, RecordError, read_record
from harness.settings.config import Config, ConfigError

IN_VAIN = 3  # times in a row that workers may die before any run has ended
PASSED = ("QEP_BENCH_CACHE", "PYTHONPATH")  # where the cache is, and classes of one's own
BUSY = ""  # returned in the place of a run's name where another process does it
JOB_TAGS = ("%j", "%t", "%A", "%a")  # what submitit replaces in the names of folders
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")

# Where workers are when Hydra 1.3 warns that our launchers' files bear the names of the plugins' own.
SILENT = ("sys", "multiprocessing.process")


def check_launcher(option: str, target: str, folder: str) -> None:
    """Raises ConfigError, in one line, where ``hydra/launcher=option`` can't run a sweep.

    Args:
        option: its name on the command line.
        target: its class; the plugin that has it may be missing.
        folder: where the sweep's files go, which a launcher may read as a pattern.
    """
    package = target.split(".")[1]
    if target.startswith("hydra_plugins.") and find_spec(f"hydra_plugins.{package}") is None:
        raise ConfigError(
            f"hydra/launcher={option}: its plugin is not installed: "
            f"pip install -c constraints.txt {package.replace('_', '-')}"
        )
    found = [tag for tag in JOB_TAGS if tag in folder]
    if found and package == "hydra_submitit_launcher":
        raise ConfigError(
            f"results={folder}: hydra/launcher={option} would put a number of its job for "
            f"{found[0]}; results= wants a folder without it"
        )


def elsewhere(target: str) -> bool:
    """Whether a launcher, by its class, has runs done on other machines than this."""
    named = target.rpartition(".")[2]
    return named == "SlurmLauncher" or (named == "RayLauncher" and "RAY_ADDRESS" in os.environ)


def launch(
    fixed: Sequence[str],
    jobs: Mapping[str, Sequence[str]],
    configs: Sequence[Config],
    task: Callable[[Any], Any],
    console: Console,
) -> None:
    """Has Hydra's launcher run the jobs of ``configs``; tells of each when its record appears.

    What Hydra's sweeper would do, without composing every job once more. When a worker dies, the
    runs that have no record yet start again, as long as that gets on. What another sweep does is left
    to it, and done here only where that gives it back undone.

    Args:
        fixed: the words of the command line that all jobs share; Hydra knows the folder of them.
        jobs: the words of each job, by the name of its run.
        configs: the runs to do.
        task: what a worker calls with a composed configuration.
        console: where to tell.

    Raises:
        ConfigError: nothing has started, since no worker can have what a run takes; one line.
    """
    launcher, cfg = instantiated(fixed, task)
    shared = ["cache.reference=true"] if all(one.cache.reference for one in configs) else []
    if all(config.threads is None for config in configs):
        threads = cfg.hydra.launcher.get("cpus_per_task") or threads_of_a_worker(cfg.workers)
        shared.append(f"threads={threads}")
        launcher, cfg = instantiated([*fixed, *shared], task)
    watch = Watch(configs)
    todo, busy, in_vain = list(watch.configs), list[str](), 0
    slurm = getattr(launcher, "_EXECUTOR", "") == "slurm"
    family = {} if slurm else mark()  # a scheduler's jobs are its own
    chosen = {} if slurm or hasattr(launcher, "ray_cfg") else cards_of(configs, cfg.workers)
    with (
        environment(cfg.threads, {**family, **chosen}) as variables,
        followed(family),
        cluster(launcher, variables),
        telling(watch, console),
    ):
        while todo:
            try:
                words = [[*jobs[run], *shared] for run in todo]
                done = start(launcher, words, cfg.workers)
            except Exception as error:
                left = watch.waiting()
                in_vain = in_vain + 1 if len(left) == len(todo) + len(busy) else 0
                if in_vain == IN_VAIN:
                    raise
                console.say(f"a worker died ({type(error).__name__}); its runs start again")
                todo, busy = left, []
                continue
            busy += [run for run, name in zip(todo, done, strict=True) if name == BUSY]
            todo, busy = watch.given_back(busy)


def instantiated(fixed: Sequence[str], task: Callable[[Any], Any]) -> tuple[Launcher, DictConfig]:
    """The launcher that the words ``fixed`` describe, and their configuration."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    cfg = hydra.compose_config("config", list(fixed), run_mode=RunMode.MULTIRUN)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(hydra.config_loader, Callbacks(cfg)),
        task_function=task,
        config=cfg,
    )
    return launcher, cfg


def start(launcher: Launcher, jobs: Sequence[Sequence[str]], workers: int) -> list[str]:
    """What the task has returned for each of ``jobs``; raises what a worker died of."""
    if getattr(launcher, "_EXECUTOR", "") != "local":
        results = list(launcher.launch(jobs, initial_job_idx=0))
    else:  # submitit's local executor starts at once whatever it is given
        with ThreadPoolExecutor(workers) as pool:
            one_by_one = pool.map(lambda at: launcher.launch([jobs[at]], at), range(len(jobs)))
            results = [result for group in one_by_one for result in group]
    return [result.return_value for result in results]  # raises what a job raised


def threads_of_a_worker(workers: int) -> int:
    """An equal share of the cores that this process may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // workers)


@contextmanager
def environment(threads: int | None, more: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """What workers start with: their thread count in every library, silence, ours, and ``more``."""
    wanted = dict(more)
    wanted |= {name: os.environ[name] for name in PASSED if name in os.environ}
    wanted |= {"PYTHONWARNINGS": ",".join(f"ignore::UserWarning:{one}" for one in SILENT)}
    wanted |= {name: str(threads) for name in THREADS if threads is not None}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield wanted
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Watch:
    """Sees the records of runs appear that other processes do."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self.configs = {config.run_id: config for config in configs}
        self.over = threading.Event()
        self._before = {run: self._stamp(run) for run in self.configs}

    def waiting(self) -> list[str]:
        """The runs without a record newer than this watch."""
        return [run for run in self.configs if self._stamp(run) == self._before[run]]

    def given_back(self, runs: Sequence[str]) -> tuple[list[str], list[str]]:
        """Of ``runs``, which other processes do, those that are to be done after all, and the others.

        Waits until there are some, or all are done.
        """
        while True:
            left = [run for run in runs if self.configs[run].settled() is None]
            held = [run for run in left if Lock(self.configs[run].directory).held()]
            if len(held) < len(left) or not left:
                return [run for run in left if run not in held], held
            time.sleep(POLL)

    def arrivals(self) -> Iterator[Record]:
        """The records as they appear, until all are there or ``over`` is set."""
        told: set[str] = set()
        while len(told) < len(self.configs):
            last = self.over.is_set()  # asked first: what appears meanwhile is not missed
            new = self.configs.keys() - set(self.waiting()) - told
            for run in sorted(new):
                told.add(run)
                try:
                    yield read_record(self.configs[run].directory)
                except (FileNotFoundError, RecordError):  # cleared again: somebody redoes it
                    continue
            if last:
                return
            self.over.wait(POLL)

    def _stamp(self, run: str) -> tuple[int, int] | None:
        try:
            found = (self.configs[run].directory / RECORD).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino


@contextmanager
def telling(watch: Watch, console: Console) -> Iterator[None]:
    """Prints a line for every run that ends inside, under a bar with the time left."""

    def tell() -> None:
        for record in console.track(watch.arrivals(), "runs", len(watch.configs)):
            console.ended(record, str(watch.configs[record.run].directory / RECORD))

    teller = threading.Thread(target=tell, name="telling")
    teller.start()
    try:
        yield
    finally:
        watch.over.set()
        teller.join()
