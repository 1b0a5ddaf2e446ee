"""Command lines become typed configurations: what Hydra composes, with the files merged only once.

The jobs of a sweep differ in a few values, yet Hydra reads and merges all files for each of them,
which takes longer than to skip a finished run. Here files are merged once per combination of group
options (``method=gptq``); values (``bits=3``) are set on a copy, both by Hydra's own functions.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.command.spread import check_launcher
from harness.settings.config import Config, ConfigError, build_config

MULTIRUN = ("-m", "--multirun")


@dataclass(frozen=True)
class Sweep:
    """What a command line stands for; a single run is a sweep of one job.

    Args:
        conf: the folder of configurations.
        fixed: the words that all jobs share, Hydra's own included.
        jobs: the words of each job.
        configs: the typed configuration of each job, in the same order.
        launcher: the option of Hydra's group ``hydra/launcher``.
    """

    conf: Path
    fixed: list[str]
    jobs: list[list[str]]
    configs: list[Config]
    launcher: str = "basic"

    @property
    def distinct(self) -> list[Config]:
        """The configurations without those that are the same run as an earlier one."""
        return list({config.run_id: config for config in reversed(self.configs)}.values())[::-1]


@dataclass
class Composer:
    """Composes jobs; to be used while Hydra knows the folder of configurations."""

    _merged: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)
    _parsed: dict[str, Override] = field(default_factory=dict)

    def __call__(self, words: Sequence[str]) -> dict[str, Any]:
        """The plain, resolved configuration that Hydra composes from ``words``."""
        overrides = [self.parse(word) for word in words]
        overrides = [one for one in overrides if not one.is_hydra_override()]
        groups = tuple(str(one.input_line) for one in overrides if _chooses_a_file(one))
        if groups not in self._merged:
            self._merged[groups] = compose("config", list(groups))
        cfg = copy.deepcopy(self._merged[groups])
        values = [one for one in overrides if not _chooses_a_file(one)]
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        return plain  # type: ignore[return-value]

    def parse(self, word: str) -> Override:
        """The override that ``word`` stands for."""
        if word not in self._parsed:
            (self._parsed[word],) = OverridesParser.create().parse_overrides([word])
        return self._parsed[word]


def _chooses_a_file(override: Override) -> bool:
    """Whether an override is one of the defaults list, by the rule of Hydra's defaults list."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    exists = hydra.config_loader.repository.group_exists  # type: ignore[attr-defined]
    return exists(override.key_or_group) and not isinstance(override.value(), dict)


def compose_jobs(conf: Path, arguments: Sequence[str], command: str = "") -> Sweep:
    """Every job that ``arguments`` stand for.

    Raises:
        ConfigError: a job does not compose, or its configuration can't run; one line.
    """
    words = [word for word in arguments if word not in MULTIRUN]
    with hydra_on(conf), hydra_errors(conf):
        composer, fixed, jobs, launcher = Composer(), words, [words], "basic"
        if len(words) < len(arguments):
            fixed = [word for word in words if not composer.parse(word).is_sweep_override()]
            hydra = compose("config", fixed, return_hydra_config=True).hydra
            launcher = hydra.runtime.choices["hydra/launcher"]
            check_launcher(launcher, hydra.launcher["_target_"])
            given = {composer.parse(word).key_or_group for word in words}
            params = {str(key): value for key, value in (hydra.sweeper.params or {}).items()}
            swept = [f"{key}={value}" for key, value in params.items() if key not in given]
            overrides = [composer.parse(word) for word in (*swept, *words)]
            batches = BasicSweeper.split_arguments(overrides, max_batch_size=None)
            jobs = [list(job) for batch in batches for job in batch]
        configs = [build_config(composer(job), command) for job in jobs]
    return Sweep(conf, fixed, jobs, configs, launcher)


@contextmanager
def hydra_on(conf: Path) -> Iterator[None]:
    """Hydra with ``conf`` as its folder of configurations."""
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        yield


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
    found = {path.stem for path in (conf / group).glob("*.yaml")}
    options = sorted(found | ({"basic"} if group == "hydra/launcher" else set()))
    near = get_close_matches(option, options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{group}={option}: allowed are {', '.join(options)}{hint}"


def unknown_key(conf: Path, message: str) -> str:
    """A key that the configuration lacks: the nearest one; other messages on one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = re.search(r"Could not override '([^']+)'", lines[0])
    if not found:
        return " ".join(lines)
    group = found[1].partition(".")[0]
    offered = {
        path.stem: [f"{group}.{key}" for key in _keys_of(OmegaConf.load(path))]
        for path in sorted((conf / group).glob("*.yaml"))
    }
    have = [name for name, options in offered.items() if found[1] in options]
    if have:
        return f"{found[1]}: not an option of the chosen {group}, but of {', '.join(have)}"
    keys = [*_keys_of(compose("config")), *chain.from_iterable(offered.values())]
    if found[1] in keys:
        return f"{found[1]}: keys of its own are added with a plus: +{found[1]}={{...}}"
    near = get_close_matches(found[1], keys, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "python run.py --help lists all"
    return f"{found[1]}: no such option; {hint}"


def _keys_of(cfg: DictConfig | ListConfig) -> list[str]:
    """All keys with dots, as on the command line."""
    return list(_keys(OmegaConf.to_container(cfg, resolve=False)))


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
