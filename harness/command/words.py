"""What is wrong with a word of the command line, in one line: what is allowed, what exists, what to type.

Hydra's own messages take several lines, know nothing of the chosen method or model, and leave out why
a value does not fit. Suggestions name only what exists where the word was going.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from harness.command.programs import program
from harness.settings.config import ConfigError

# Mappings whose keys are the user's.
OWN_KEYS = ("qep.overrides", "eval.evaluators", "eval.evaluators.*.corpora")
SURE = 0.8  # how like a name of another place must be to be suggested
FEW = 6  # names that are listed before the rest is counted


def parsed(word: str) -> Override:
    """The override that ``word`` stands for.

    Raises:
        ConfigError: it is none.
    """
    hydra = GlobalHydra.instance().hydra
    loader = None if hydra is None else hydra.config_loader
    try:
        (override,) = OverridesParser.create(config_loader=loader).parse_overrides([word])
    except (HydraException, ValueError):
        raise ConfigError(unreadable(word)) from None
    if not override.key_or_group:
        raise ConfigError(unreadable(word))
    return override


def unreadable(word: str) -> str:
    """Why a word is no override, and what would be one."""
    found = re.fullmatch(r"(?:\+\+|\+|~)?([^=]*)(?:=(.*))?", word, re.DOTALL)
    assert found is not None
    key, value = found[1], found[2]
    said = " ".join(word.split())
    if said.startswith("-"):
        return f"{said!r}: options are key=value, without dashes; -m sweeps, --help lists all"
    if value is None or not key or not is_readable(f"{key}=1"):
        return f"{said!r}: want key=value; a value with spaces needs quotes, \"key='a b'\""
    if value[:1] in ("'", '"'):
        return f"{said}: a quote must be closed, and nothing may follow it"
    if any(value.count(a) != value.count(b) for a, b in ("[]", "{}", "()")):
        return f"{said}: a bracket must be closed"
    if value.endswith(","):
        return f"{said}: a value is missing after the last comma"
    if value[:1] in ("[", "{"):
        return (
            f"{said}: can't be read; a list is [a,b], a mapping {{a: 1}} without quotes around a, "
            "and values with characters other than letters, digits and -./*@%+| need quotes"
        )
    return f"{said}: can't be read as it is; as text it is {pasteable(key, value)}"


def is_readable(word: str) -> bool:
    """Whether ``word`` is an override."""
    try:
        OverridesParser.create().parse_overrides([word])
    except (HydraException, ValueError):
        return False
    return True


def pasteable(key: str, value: str) -> str:
    """The word for ``key`` and the text ``value`` as one types it into a shell."""
    # Hydra takes a backslash for one, but where a quote follows: there it takes two, and one more
    # before a quote that is text.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + "\\'" * bool(found[2]), value)
    word = f"{key}='{escaped}'"
    return f'"{word}"' if not re.search(r'["$`\\!]', word) else shlex.quote(word)


def several(override: Override) -> str:
    """What is said of several values where one is wanted."""
    word, key = override.input_line, override.key_or_group
    said = f"{word}: several values are a sweep, which needs -m: {program()} -m {word} ..."
    value = str(word).partition("=")[2]
    if re.fullmatch(r"[^\[{(]*,[^\[{(]*", value):
        said += f" (a list is {key}=[{value}], a text {pasteable(key, value)})"
    return said


def unknown_option(group: str, option: str) -> str:
    """A file that a group lacks: those that it has, and the nearest."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    options = sorted(hydra.config_loader.get_group_options(group))
    near = get_close_matches(option, options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{group}={option}: allowed are {', '.join(options)}{hint}"


def unknown_key(key: str, cfg: DictConfig, conf: Path) -> str:
    """A key that the configuration ``cfg`` lacks: whose it is, or the nearest that it has."""
    if "/" in key:
        groups = sorted(path.name for path in conf.iterdir() if path.is_dir())
        return f"{key}: no such group; known are {', '.join(groups)}"
    keys = list(keys_of(cfg))
    parts = key.split(".")
    missing = next(
        name
        for name in (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        if name not in keys
    )
    parent, _, last = missing.rpartition(".")
    group = parts[0]
    owners = [path.stem for path in sorted((conf / group).glob("*.yaml")) if has(path, missing)]
    if owners:
        return f"{missing}: not an option of the chosen {group}, but of {some(owners)}"
    beside = [one.rpartition(".")[2] for one in keys if one.rpartition(".")[0] == parent]
    beside = [one for one in beside if one != "_target_"]
    if near := get_close_matches(last, beside, n=1):
        fixed = f"{parent}.{near[0]}" if parent else near[0]
        whole = fixed + key.removeprefix(missing)
        return f"{key}: no such option; did you mean {whole if whole in keys else fixed!r}?"
    if any(fnmatchcase(parent, pattern) for pattern in OWN_KEYS):
        return f"{key}: keys of its own are added with a plus: +{parent}={{{last}: ...}}"
    if elsewhere := namesakes(last, keys, None if parent else SURE):
        return f"{key}: no such option; did you mean {' or '.join(map(repr, elsewhere))}?"
    if not parent:
        return f"{key}: no such option; {program()} --help lists all"
    listed = f"known are {', '.join(beside)}" if beside else f"{parent} has none"
    return f"{key}: no such option; {listed}"


def namesakes(last: str, keys: Sequence[str], like: float | None) -> list[str]:
    """Keys of other places whose last part is ``last``; the plainest, at most two.

    ``like`` is how much a name has to be like it where none is the same; None is no such name.
    """
    names = {one.rpartition(".")[2] for one in keys}
    near = [last] if last in names else []
    if not near and like is not None:
        near = get_close_matches(last, names, n=1, cutoff=like)
    found = [one for one in keys if near and one.rpartition(".")[2] == near[0]]
    plainest = min((one.count(".") for one in found), default=0)
    return [one for one in found if one.count(".") == plainest][:2]


def some(names: Sequence[str]) -> str:
    """The first few names, the others counted."""
    rest = len(names) - FEW
    return ", ".join(names) if rest < 2 else f"{', '.join(names[:FEW])} and {rest} more"


def has(path: Path, key: str) -> bool:
    """Whether the file of a group offers ``key``, which starts with the group."""
    return key.partition(".")[2] in keys_of(OmegaConf.load(path))


def keys_of(cfg: DictConfig | ListConfig) -> Iterator[str]:
    """All keys with dots, as on the command line."""
    return _keys(OmegaConf.to_container(cfg, resolve=False))


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def refused(override: Override, error: Exception, cfg: DictConfig, conf: Path) -> str:
    """Why Hydra could not set ``override`` in ``cfg``."""
    word, key = str(override.input_line), override.key_or_group
    cause = error.__cause__ or error
    lacks = re.search(r"Key '.*' (?:is not in struct|not in )", str(cause))
    if lacks or "does not exist" in str(error):
        full = str(getattr(cause, "full_key", None) or key)
        return unknown_key(key if key.startswith(f"{full}.") else full, cfg, conf)
    if override.is_add():
        return f"{word}: there is one already; without the plus the value is replaced"
    said = first_line(cause)
    if merging := re.fullmatch("Cannot merge (Dict|List)Config with (Dict|List)Config", said):
        kinds = {"Dict": "a mapping", "List": "a list"}
        said = f"{key} is {kinds[merging[2]]}, not {kinds[merging[1]]}"
    return f"{word}: {said}"


def first_line(error: BaseException) -> str:
    """The first line of a message, which in Hydra's and OmegaConf's says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def unresolved(error: OmegaConfBaseException) -> str:
    """A value that is missing, or that refers to something that there is not."""
    missing = error.full_key if isinstance(error, MissingMandatoryValue) else None
    if referred := re.search(
        r"resolving interpolation: Missing mandatory value: (\S+)", str(error)
    ):
        missing = referred[1]
    if missing:
        return f"{missing} is needed: set {missing}=..."
    return f"{error.full_key}: {first_line(error)}"
