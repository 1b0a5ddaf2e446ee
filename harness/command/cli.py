"""The command line around Hydra: everything that can be known is checked before anything starts.

Exit codes: 0 all runs done, 1 some run failed, 2 the configuration can't run, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich.console
from hydra.core.hydra_config import HydraConfig

from harness.command.cards import ANY, own_card
from harness.command.checks import checks
from harness.command.compose import Sweep, compose_jobs
from harness.command.composer import hydra_on
from harness.command.console import Console
from harness.command.interrupts import keep_interrupts
from harness.command.notices import listen
from harness.command.programs import alone
from harness.command.protocols import Protocols
from harness.command.spread import BUSY, launch
from harness.command.start import INTERRUPTED
from harness.records.locks import POLL, BusyError
from harness.records.memory import keep_freed_memory
from harness.records.noise import update_noise
from harness.records.record import RECORD, Record, RecordError, read_record
from harness.settings.build import build_config
from harness.settings.config import Config, ConfigError
from harness.settings.stale import notices

FAILED, BAD_CONFIG = 1, 2
WIDE = "--wide"  # the one option that is no part of any configuration
SHARING = 3  # runs from which on it pays to keep what they have in common on disk


def main(task: Callable[[Any], Any], conf: Path, arguments: Sequence[str]) -> int:
    """Checks every job, runs those that are not done yet, sums up; returns the exit code.

    Args:
        task: what a Hydra launcher calls with a composed configuration, in a process of its own.
        conf: the folder of configurations.
        arguments: the command line without the program.
    """
    console = Console(wide=WIDE in arguments)
    arguments = [word for word in arguments if word != WIDE]
    prepare(console.say)
    try:
        sweep = compose_jobs(conf, arguments)
        for problem in checks(
            sweep.configs, sweep.elsewhere
        ):  # later ones presuppose earlier ones
            raise ConfigError(problem)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIG
    except KeyboardInterrupt:
        console.say("interrupted before anything started", style="red")
        return INTERRUPTED
    if any(config.dry_run for config in sweep.configs):
        from harness.command import estimate, sketch

        absent = any(config.device_profile for config in sweep.configs)
        (sketch if absent else estimate).dry_run(sweep.configs, console)
        return 0
    skipped = {
        one.run_id: record for one in sweep.distinct if not one.force and (record := one.settled())
    }
    try:
        do(sweep, task, skipped, console)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIG
    except KeyboardInterrupt:
        done = sum(1 for config in sweep.distinct if config.settled())
        console.say(
            f"interrupted: {done} of {len(sweep.distinct)} runs are finished; the same command "
            "goes on from here",
            style="red",
        )
        return INTERRUPTED
    for config in sweep.distinct:
        update_noise(config)
    return summarise(sweep, skipped, console)


def plan_jobs(conf: Path, arguments: Sequence[str]) -> list[Config]:
    """The typed configuration of every job that ``arguments`` stand for.

    Raises:
        ConfigError: a job does not compose, or its configuration can't run; one line.
    """
    return compose_jobs(conf, arguments).configs


def do(
    sweep: Sweep, task: Callable[[Any], Any], skipped: Mapping[str, Record], console: Console
) -> None:
    """Runs what is not done yet: here one after the other, or where Hydra's launcher puts it."""
    from harness.records.tidying import tidy

    left = []
    for config in sweep.distinct:
        if config.run_id in skipped:
            console.skipped(skipped[config.run_id])
            tidy(config, skipped[config.run_id])
        else:
            left.append(config)
    if not left:
        return
    from harness.pipeline import computed  # takes a second, which what is done need not wait for

    computed(left[0]).probe()
    if sum(config.quantizes for config in left) >= SHARING:
        left = [config.sharing() for config in left]
    if len(sweep.distinct) > 1 and left:
        from harness.command.pace import Pace

        console.pace = Pace(len(sweep.distinct), left)
    if sweep.launcher == "basic":
        in_turn(left, console)
        return
    baselines = {
        one.run_id: one for one in (config.reference() for config in left) if one is not None
    }
    for config in (*baselines.values(), *left):
        for line in notices(config):  # workers are silent
            console.say(line, style="yellow")
    try:
        jobs = {one.run_id: job for one, job in zip(sweep.configs, sweep.jobs, strict=True)}
        with hydra_on(sweep.conf, sweep.own):
            launch(sweep.fixed, jobs, left, task, console)
    except ConfigError:
        raise
    except Exception as error:
        if any(config.debug for config in left):
            raise
        console.failed(f"hydra/launcher={sweep.launcher}", error, "what is finished stays")


def in_turn(configs: Sequence[Config], console: Console) -> None:
    """Runs what is free, one after the other; what another process does comes after that."""
    left, told = list(configs), False
    while left:
        busy = []
        for config in left:
            held = attempt(config, console)
            if held is not None:  # whoever has to wait for a run does not do it again
                ours = held != config.directory
                busy.append(config if ours else replace(config, force=False))
        if len(busy) == len(left):
            if not told:
                console.say(f"other processes do what is left ({len(left)}): waiting for them")
            told = True
            time.sleep(POLL)
        left = busy


def run_job(plain: Mapping[str, Any]) -> str:
    """Runs one job that a launcher has composed; returns the name of its run.

    Nothing is returned where another process does the run: there may be others to do here. The
    full-precision run is waited for, which most runs of a sweep need.
    """
    place = HydraConfig.get().runtime.cwd
    if os.path.isdir(place):  # paths are relative to where the sweep was started
        os.chdir(place)
    prepare(lambda line: print(line, file=sys.stderr))
    hydra = HydraConfig.get()
    config = build_config(plain, command=alone(hydra.job.name, hydra.overrides.task))
    if config.device == ANY:
        own_card()
    config = Protocols().named(config)
    console = Console(rich.console.Console(quiet=True))  # the launching process tells
    while (busy := attempt(config, console)) is not None:
        if busy == config.directory:
            return BUSY
        time.sleep(POLL)
    return config.run_id


def attempt(config: Config, console: Console) -> Path | None:
    """Runs one job; a failure is recorded and told, never raised, so that a sweep goes on.

    Returns the directory of the run that another process is doing, this one or one that it needs;
    None where none is.
    """
    from harness.pipeline import run

    try:
        run(config, console, wait=False)
    except BusyError as busy:
        return busy.directory
    except Exception as error:
        if config.debug:
            raise
        record = config.directory / RECORD
        where = f"traceback in {record}" if record.exists() else "no record could be written"
        console.failed(config.run_id, error, where)
    return None


def summarise(sweep: Sweep, skipped: Mapping[str, Record], console: Console) -> int:
    """Prints the final table and counts the jobs; returns 1 where a run failed or left no record."""
    records = {one.run_id: record_of(one.directory) for one in sweep.distinct}
    found = [record for record in records.values() if record is not None]
    folder = sweep.configs[0].folder
    baselines = {}
    for record in found:
        name = record.run if record.summary.get("method") == "none" else record.baseline
        if name and name not in baselines and (baseline := record_of(folder / name)):
            baselines[name] = baseline
    console.summary(found, baselines, str(folder))
    counts = dict.fromkeys(("done", "skipped", "failed", "stopped"), 0)
    seen = {*skipped, *console.passed_over}
    for config in sweep.configs:
        one = records[config.run_id]
        status = "failed" if one is None else one.status
        again = config.run_id in seen and status != "failed"
        counts["skipped" if again else status] += 1
        seen.add(config.run_id)
    if len(sweep.configs) > 1:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        console.say(f"{len(sweep.configs)} jobs: {told}")
    return FAILED if counts["failed"] else 0


def record_of(directory: Path) -> Record | None:
    """The record in ``directory``; None where there is none that can be read."""
    try:
        return read_record(directory)
    except (FileNotFoundError, RecordError):
        return None


def prepare(say: Callable[[str], object]) -> None:
    """What every process does first: freed memory stays, ``say`` tells what libraries warn of."""
    keep_interrupts()
    keep_freed_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    listen(say)
