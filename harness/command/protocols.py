"""The name of what a run measures: that of its file in conf/eval, with a star where it differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hydra import compose
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from harness.command.words import unknown_option
from harness.settings.build import evaluators
from harness.settings.config import Config, ConfigError
from harness.settings.identity import described

# Options of evaluators that make no other protocol: how they work, and what they measure beside it.
BESIDES = ("batch_tokens", "batch_size", "divergence")


@dataclass
class Protocols:
    """Names what configurations measure; to be used while Hydra knows the folder of configurations."""

    _written: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def named(self, config: Config) -> Config:
        """``config`` with its protocol: ``eval.protocol``, with a star where anything is changed.

        A file that leaves something to be filled in (a path, the calibration) fixes nothing.

        Raises:
            ConfigError: there is no such file.
        """
        name = config.plain["eval"].get("protocol")
        if name is None:
            return config
        if name not in self._written:
            self._written[name] = as_written(name)
        same = self._written[name] in (None, measured(config.evaluators))
        return replace(config, protocol=name if same else f"{name}*")


def measured(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluators measure: their options but for those of ``BESIDES``."""
    return {
        name: {key: value for key, value in described(one).items() if key not in BESIDES}
        for name, one in chosen.items()
    }


def as_written(name: str) -> dict[str, Any] | None:
    """What conf/eval/``name``.yaml measures without any option changed; None if it lacks one."""
    try:
        cfg = compose(f"eval/{name}")
    except MissingConfigException:
        raise ConfigError(f"eval.protocol: no {unknown_option('eval', name)}") from None
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except (MissingMandatoryValue, InterpolationResolutionError):
        return None
    assert isinstance(plain, dict)
    problems: list[str] = []
    found = evaluators(plain["eval"], problems)
    if found is None or problems:
        raise ConfigError("; ".join(problems))
    return measured(found)
