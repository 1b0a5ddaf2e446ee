"""The command line around Hydra: everything that can be known is checked before anything starts.

Exit codes: 0 all runs done, 1 some run failed, 2 the configuration can't run.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import Config, ConfigError, Selection, build_config
from harness.console import Console
from harness.record import RecordError, finished, read_record

FAILED, BAD_CONFIG = 1, 2


def main(job: Callable[[], Any], conf: Path, arguments: list[str]) -> int:
    """Checks every job, has Hydra run them, sums up; returns the exit code."""
    quiet()
    console = Console()
    try:
        configs = plan_jobs(conf, arguments)
        for problem in dict.fromkeys(checks(configs)):
            raise ConfigError(problem)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIG
    # Hydra takes its flags only in front of or behind all overrides.
    flags = [word for word in arguments if word.startswith("-")]
    sys.argv[1:] = flags + [word for word in arguments if word not in flags]
    job()
    return summarise(configs, console)


def run_job(plain: Mapping[str, Any]) -> str:
    """Runs one composed job; a failure is recorded and told, never raised."""
    quiet()
    from harness.pipeline import run

    console = Console()
    config = build_config(plain, command=shlex.join(["python", "run.py", *sys.argv[1:]]))
    try:
        run(config, console)
    except Exception as error:
        if plain.get("debug"):
            raise
        console.failed(config.run_id, error, str(config.directory / "record.json"))
    return config.run_id


def plan_jobs(conf: Path, arguments: list[str]) -> list[Config]:
    """The typed configuration of every job that ``arguments`` stand for."""
    words = [word for word in arguments if word not in ("-m", "--multirun")]
    multirun = len(words) < len(arguments)
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"), hydra_errors(conf):
        parser = OverridesParser.create()
        if not multirun:
            return [typed(words)]
        whole = compose("config", [word for word in words if _is_static(parser, word)], True)
        params = whole.hydra.sweeper.params or {}
        words = [f"{key}={value}" for key, value in params.items()] + words
        overrides = parser.parse_overrides(words)
        batches = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        return [typed(list(overrides)) for batch in batches for overrides in batch]


def typed(overrides: list[str]) -> Config:
    """One job's configuration from its overrides."""
    cfg = compose("config", [one for one in overrides if not one.lstrip("+~").startswith("hydra")])
    return build_config(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]


def _is_static(parser: OverridesParser, word: str) -> bool:
    return not parser.parse_override(word).is_sweep_override()


def checks(configs: list[Config]) -> Iterator[str]:
    """What the plugins of all jobs know to be wrong, and what the machine lacks."""
    seen: set[str] = set()
    for config in configs:
        yield from device_problems(config.device)
        yield from folder_problems(Path(config.results) / config.set)
        parts = [config.model, *config.evaluators.values()]
        parts += [config.calibration] if config.quantizes else []
        for part in parts:
            if repr(part) in seen:
                continue
            seen.add(repr(part))
            try:
                part.check()
            except ValueError as error:
                yield str(error)
        yield from calibration_problems(config)
        yield from selection_problems(config)


def calibration_problems(config: Config) -> Iterator[str]:
    """What is wrong with the calibration tokens: made here, before the model loads, and kept."""
    from harness.pipeline import calibration_tokens

    if not config.quantizes or finished(config.directory) and not config.force:
        return
    try:
        calibration_tokens(config.model, config.calibration, config.seed)
    except ValueError as error:
        yield f"calibration: {error}"


def selection_problems(config: Config) -> Iterator[str]:
    """What is wrong with the chosen linears and groups, seen on the model without its weights."""
    from harness.architecture import select
    from harness.pipeline import check_groups

    chosen = config.quantize
    if not config.quantizes or (chosen == Selection() and config.grid.group_size is None):
        return
    try:
        linears = select(config.model.skeleton(), chosen.include, chosen.exclude, chosen.blocks)
        check_groups(config, linears.values())
    except ValueError as error:
        yield str(error)


def device_problems(device: str) -> Iterator[str]:
    """What is wrong with the name of a device on this machine."""
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError:
        yield f"device={device!r}: no such device; try cpu, cuda or cuda:0"
        return
    if kind.type == "cpu" or kind.type == "meta":
        return
    module = getattr(torch, kind.type, None)
    count = module.device_count() if module is not None and module.is_available() else 0
    if (kind.index or 0) >= count:
        yield f"device={device!r}: this machine has {count} {kind.type} devices; device=cpu works everywhere"


def folder_problems(folder: Path) -> Iterator[str]:
    """Why records can't be written below ``folder``; the folder exists afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield f"results={str(folder.parent)!r}: {error.strerror} ({error.filename})"
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield f"results={str(folder.parent)!r}: not writable"


def summarise(configs: list[Config], console: Console) -> int:
    """Prints the final table; returns 1 where a run failed or left no record."""
    records, missing = {}, []
    for config in configs:
        try:
            records[config.run_id] = read_record(config.directory)
        except (FileNotFoundError, RecordError):
            missing.append(config.run_id)
    first = configs[0].directory.parent
    baselines = {}
    for record in records.values():
        name = record.run if record.summary.get("method") == "none" else record.baseline
        if name and name not in baselines:
            baselines[name] = read_record(first / name)
    console.summary(list(records.values()), baselines, str(first))
    failed = [record.run for record in records.values() if record.status == "failed"] + missing
    if len(configs) > 1:
        console.say(
            f"{len(configs)} jobs: {len(configs) - len(failed)} done, {len(failed)} failed"
        )
    return FAILED if failed else 0


@contextmanager
def hydra_errors(conf: Path) -> Iterator[None]:
    """Turns what Hydra says over several lines into one."""
    try:
        yield
    except MissingConfigException as error:
        found = re.search(r"Could not find '([^']+)'", str(error))
        raise ConfigError(unknown_option(conf, found[1] if found else str(error))) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(unknown_key(conf, str(error).strip())) from None


def unknown_option(conf: Path, missing: str) -> str:
    """``group/option`` that no file has: the options of the group, and the nearest."""
    group, _, option = missing.rpartition("/")
    options = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    near = get_close_matches(option, options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{group}={option}: allowed are {', '.join(options)}{hint}"


def unknown_key(conf: Path, message: str) -> str:
    """A key that the configuration lacks: the nearest one; other messages on one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = re.search(r"Could not override '([^']+)'", lines[0])
    if not found:
        return " ".join(lines)
    cfg = compose("config")
    keys = list(_keys(OmegaConf.to_container(cfg, resolve=False)))
    near = get_close_matches(found[1], keys, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "python run.py --help lists all"
    return f"{found[1]}: no such option; {hint}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def quiet() -> None:
    """Keeps libraries from talking over the progress display; errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("transformers", "lm_eval", "lm-eval", "datasets", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch|lm_eval")
