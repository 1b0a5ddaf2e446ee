"""Which word of a command line is at fault when Hydra can't compose it, or could but ought not to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.command.composer import ERRORS, Composer, chooses_a_file
from harness.command.words import (
    first_line,
    keys_of,
    refused,
    unknown_key,
    unknown_option,
    unresolved,
)
from harness.settings.build import build_config
from harness.settings.config import Config, ConfigError

CHAINS = ("transform",)  # groups of which a run may have several options, one after the other


def configured(composer: Composer, job: Sequence[str], conf: Path, command: str) -> Config:
    """The typed configuration of a job.

    Raises:
        ConfigError: Hydra can't compose it, nobody would read a key, a value does not fit; one line.
    """
    if wrong := unwanted(composer, job, conf):
        raise ConfigError(wrong)
    try:
        plain = composer(job)
    except ERRORS as error:
        raise ConfigError(why(composer, job, conf) or first_line(error)) from None
    try:
        return build_config(plain, command)
    except ConfigError as error:
        raise ConfigError(as_typed(str(error), composer.unresolved(job))) from None


def as_typed(message: str, plain: Mapping[str, Any]) -> str:
    """``message`` with the keys that a person sets, where what is refused only refers to one of them."""
    for path, knob in references(plain):
        message = re.sub(rf"(?<![\w.]){re.escape(path)}(?![\w.])", knob, message)
    return "; ".join(dict.fromkeys(message.split("; ")))  # several may refer to the same


def references(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The keys whose value is no more than a reference, and what to."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from references(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, str) and (found := re.fullmatch(r"\$\{([\w.]+)\}", node)):
        yield path, found[1]


def hydra_of(composer: Composer, words: Sequence[str], conf: Path) -> DictConfig:
    """Hydra's own configuration.

    Raises:
        ConfigError: a word does not fit; one line.
    """
    try:
        hydra: DictConfig = compose("config", list(words), return_hydra_config=True).hydra
    except ERRORS as error:
        wrong = why(composer, words, conf) or why_not_hydra(composer, words, conf)
        raise ConfigError(wrong or first_line(error)) from None
    added = [one for one in composer.parse(words) if one.is_hydra_override() and adds(one)]
    if added and (wrong := why_not_hydra(composer, words, conf)):
        raise ConfigError(wrong)
    return hydra


def adds(override: Override) -> bool:
    """Whether a word may make a new key."""
    return override.is_add() or override.is_force_add()


def unwanted(composer: Composer, words: Sequence[str], conf: Path) -> str | None:
    """What Hydra composes although it makes no sense: keys that nobody reads, two files of a group."""
    for one in composer.own(words):
        group = one.key_or_group
        several = isinstance(one.value(), list) and group not in CHAINS
        if not one.is_delete() and chooses_a_file(one) and several:
            return f"{one.input_line}: {group} is one of its options; -m {group}=a,b tries several"
        if not adds(one) or chooses_a_file(one):
            continue
        try:
            cfg = composer.merged(words)
        except ERRORS:
            return None  # composing says why
        if lost := read_by_nobody(one.key_or_group, cfg):
            return unknown_key(lost, cfg, conf)
    return None


def read_by_nobody(key: str, cfg: DictConfig) -> str | None:
    """The part of an added ``key`` that no object will be made of: at the top, or a knob of eval.

    What is added elsewhere ends in the options of an object, which knows them.
    """
    keys, parts = set(keys_of(cfg)), key.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        if name not in keys:
            return name if count == 1 or (count == 2 and parts[0] == "eval") else None
    return None


def why(composer: Composer, words: Sequence[str], conf: Path) -> str | None:
    """What is wrong with the words of a job that Hydra can't compose, those for Hydra itself apart."""
    try:
        cfg = composer.merged(words)
    except ERRORS as error:
        return why_no_file(composer.own(words), error)
    for one in composer.values(words):
        try:
            ConfigLoaderImpl._apply_overrides_to_config([one], cfg)
        except ERRORS as error:
            return refused(one, error, cfg, conf)
    try:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        return unresolved(error)
    return None


def why_not_hydra(composer: Composer, words: Sequence[str], conf: Path) -> str | None:
    """The same of the words for Hydra itself."""
    own = [one for one in composer.parse(words) if one.is_hydra_override()]
    files = []
    for one in own:
        if chooses_a_file(one):
            files.append(str(one.input_line))
            try:
                compose("config", files, return_hydra_config=True)
            except ERRORS as error:
                return why_no_file([one], error)
    cfg = compose("config", files, return_hydra_config=True)
    keys = set(keys_of(cfg))
    for one in own:
        key, word = one.key_or_group, str(one.input_line)
        if adds(one) and key.rpartition(".")[0] in keys and key not in keys:
            return unknown_key(key, cfg, conf)
        try:
            compose("config", [*files, word], return_hydra_config=True)
        except ERRORS as error:
            return refused(one, error, cfg, conf)
    return None


def why_no_file(overrides: Sequence[Override], error: Exception) -> str:
    """Which of ``overrides`` chooses a file that there is not."""
    for one in overrides:
        if one.is_delete() or not chooses_a_file(one):
            continue
        group, option = one.key_or_group, one.value()
        named = isinstance(option, str)
        if f"'{group}/{option}'" in str(error) if named else type(error) is ValueError:
            return unknown_option(group, str(one.input_line).partition("=")[2])
        if adds(one) or one.package:
            return f"{one.input_line}: {group} is chosen already; {group}={option} replaces it"
    return first_line(error)
