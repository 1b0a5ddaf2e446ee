"""What the tasks in a folder of lm-eval's YAML files are made of: these files, and all that they name."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from harness.inputs.contents import digest, file_hash, files_hash
from harness.inputs.files import visible

TASK_KEYS = {"task", "group", "tag", "class"}  # one of them is in every file that lm-eval indexes
DATA_KEYS = ("dataset_path", "dataset_kwargs")


MODULE = re.compile(r"([\w./-]{1,200})\.\w+")  # what !function may name


class _Loader(yaml.SafeLoader):
    """Takes ``!function module.name`` as text."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


_Loader.add_constructor("!function", _function)


def tasks_hash(folder: Path) -> str:
    """One hash of the task files below ``folder``, what they include, their code and local data.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"eval.include={str(folder)!r}: no such directory")
    files: dict[str, Path] = {}
    data: dict[str, str] = {}
    for path in sorted(folder.rglob("*.yaml")):
        config = _read(path, file_hash(path))
        if config is None or TASK_KEYS & config.keys():
            _follow(path, folder, files, data)
    return digest(files_hash(files), *(f"{name} {content}" for name, content in data.items()))


@lru_cache(maxsize=4096)
def _read(path: Path, content: str) -> dict[str, Any] | None:
    """The mapping in a YAML file of that content; None where it is none or damaged."""
    try:
        found = yaml.load(path.read_bytes(), _Loader)  # noqa: S506
    except yaml.YAMLError:
        return None
    return found if isinstance(found, dict) else None


def _follow(path: Path, folder: Path, files: dict[str, Path], data: dict[str, str]) -> None:
    """Adds a file and all that it names; names are relative to ``folder``, so that it may move."""
    name = os.path.relpath(path, folder)
    if name in files or not path.is_file():
        return
    files[name] = path
    config = _read(path, file_hash(path)) or {}
    includes = config.get("include", [])
    for one in includes if isinstance(includes, list) else [includes]:
        _follow(path.parent / str(one), folder, files, data)
    for code in [*path.parent.glob("*.py"), *_modules(config, path.parent)]:
        files[os.path.relpath(code, folder)] = code
    for key in DATA_KEYS:
        for text in _texts(config.get(key)):
            data |= {text: content} if (content := _local(text)) else {}


def _modules(config: dict[str, Any], beside: Path) -> Iterator[Path]:
    """The Python files that ``!function`` takes functions from, as lm-eval finds them."""
    for text in _texts(config):
        if named := MODULE.fullmatch(text):
            path = beside / f"{named[1].replace('.', '/')}.py"
            if path.is_file():
                yield path


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _local(text: str) -> str:
    """The content of the files here that ``text``, a path or a pattern, names; "" where there are none."""
    found = sorted(map(Path, glob.glob(os.path.expanduser(text), recursive=True)))
    files = [file for one in found for file in (visible(one) if one.is_dir() else [one])]
    return digest(*(f"{file.name} {file_hash(file)}" for file in files)) if files else ""
