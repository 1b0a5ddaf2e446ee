"""What Hydra composes from words of the command line, with the files merged only once.

The jobs of a sweep differ in a few values, yet Hydra reads and merges all files for each of them,
which takes longer than to skip a finished run. Here files are merged once per combination of group
options (``method=gptq``); values (``bits=3``) are set on a copy, both by Hydra's own functions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.command.programs import called
from harness.command.words import parsed

ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError)  # of composing with Hydra


@contextmanager
def hydra_on(conf: Path, own: Path | None = None) -> Iterator[None]:
    """Hydra with ``conf`` as its folder of configurations, and one of the user's own beside it.

    The name of Hydra's job, which workers see too, is how the program was called: all but overrides.
    """
    before = get_gh_backup()
    version.setbase("1.3")
    path = create_config_search_path(str(conf.resolve()))
    if own is not None:
        path.prepend("command-line", own.resolve().as_uri(), SearchPathQuery(provider="schema"))
    Hydra.create_main_hydra2(task_name=called(own), config_search_path=path)
    try:
        yield
    finally:
        restore_gh_from_backup(before)


@dataclass
class Composer:
    """Composes jobs; to be used while Hydra knows the folder of configurations."""

    _merged: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)
    _parsed: dict[str, Override] = field(default_factory=dict)

    def __call__(self, words: Sequence[str]) -> dict[str, Any]:
        """The plain, resolved configuration that Hydra composes from ``words``."""
        plain = OmegaConf.to_container(self._set(words), resolve=True, throw_on_missing=True)
        return plain  # type: ignore[return-value]

    def unresolved(self, words: Sequence[str]) -> dict[str, Any]:
        """The same with its references as they were written."""
        return OmegaConf.to_container(self._set(words))  # type: ignore[return-value]

    def _set(self, words: Sequence[str]) -> DictConfig:
        cfg = self.merged(words)
        ConfigLoaderImpl._apply_overrides_to_config(self.values(words), cfg)
        return cfg

    def merged(self, words: Sequence[str]) -> DictConfig:
        """A copy of the configuration of all files that ``words`` choose, without their values."""
        groups = tuple(str(one.input_line) for one in self.own(words) if chooses_a_file(one))
        if groups not in self._merged:
            self._merged[groups] = compose("config", list(groups))
        return copy.deepcopy(self._merged[groups])

    def values(self, words: Sequence[str]) -> list[Override]:
        """Those of ``words`` that set values."""
        return [one for one in self.own(words) if not chooses_a_file(one)]

    def own(self, words: Sequence[str]) -> list[Override]:
        """The overrides that ``words`` stand for, without those of Hydra's own configuration."""
        return [one for one in self.parse(words) if not one.is_hydra_override()]

    def parse(self, words: Iterable[str]) -> list[Override]:
        """The overrides that ``words`` stand for."""
        for word in words:
            if word not in self._parsed:
                self._parsed[word] = parsed(word)
        return [self._parsed[word] for word in words]


def chooses_a_file(override: Override) -> bool:
    """Whether an override is one of the defaults list, by the rule of Hydra's defaults list."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    exists = hydra.config_loader.repository.group_exists  # type: ignore[attr-defined]
    return exists(override.key_or_group) and not isinstance(override.value(), dict)
