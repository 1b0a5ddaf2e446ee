"""The name of what a run measures: that of its file in conf/eval, with a star where it differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from harness.command.composer import hydra_on
from harness.command.words import unknown_option
from harness.settings.config import Config, ConfigError, evaluators
from harness.settings.identity import described

# Options of evaluators that make no other protocol: how they work, and what they measure beside it.
BESIDES = ("batch_tokens", "batch_size", "divergence")


def protocol_of(config: Config, conf: Path) -> str:
    """The protocol of ``config``: ``eval.protocol``, ``qep_paper*`` where anything is changed.

    A file that leaves something to be filled in (a path, the calibration) fixes nothing.

    Raises:
        ConfigError: there is no such file.
    """
    name = config.plain["eval"].get("protocol")
    if name is None:
        return config.protocol
    fixed = as_written(conf, str(name))
    return name if fixed in (None, measured(config.evaluators)) else f"{name}*"


def measured(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluators measure: their options but for those of ``BESIDES``."""
    return {
        name: {key: value for key, value in described(one).items() if key not in BESIDES}
        for name, one in chosen.items()
    }


@lru_cache
def as_written(conf: Path, name: str) -> dict[str, Any] | None:
    """What conf/eval/``name``.yaml measures without any option changed; None if it lacks one."""
    with hydra_on(conf):
        if not (conf / "eval" / f"{name}.yaml").exists():
            problem = unknown_option("eval", name).partition(":")[2]
            raise ConfigError(f"eval.protocol={name}:{problem}")
        cfg = compose(f"eval/{name}")
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
