"""Which files an input is made of: all that may decide a figure, under names that do not say where.

What is not known to be left unread counts. Too much costs a run that is made again; too little would be
a wrong figure without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from harness.inputs import hub
from harness.inputs.contents import digest, file_hash, files_hash
from harness.inputs.texts import check_exists

# In a checkpoint's directory never read: weights in other forms, documents, logs, unfinished copies.
UNREAD = (
    *("pytorch_model*.bin", "training_args.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack"),
    *("*.ot", "*.onnx", "*.md", "*.pdf", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg"),
    *("LICENSE*", "NOTICE*", "*.log", "*.out", "*.err", "events.out.*", "*.lock", "*.tmp"),
    *("*.part", "*.partial", "*.incomplete"),
)
INDEX = "model.safetensors.index.json"
STATE, INFO = "state.json", "dataset_info.json"  # of a directory saved by datasets
CODE_FROM = ("config.json", "tokenizer_config.json")  # may name model code of another checkpoint


def checkpoint_hash(directory: Path, code: bool) -> str:
    """One hash of configuration, tokenizer, templates and weights; with ``code`` of what it brings.

    That is everything beside each other in the directory but :data:`UNREAD` (and a GGUF file, where
    there are safetensors), the shards that the index names, and with ``code`` all Python files below,
    and those of checkpoints whose code is used.
    """
    own = files_hash(_named(directory, _checkpoint_files(directory, code)))
    others = _borrowed(directory) if code else []
    return digest(own, *others) if others else own


def text_hash(path: Path) -> str:
    """One hash of a local text, table or token file: its bytes, and the suffix, by which it is read.

    Of a directory saved by ``datasets`` the files with its rows count, in the order of its state.
    """
    check_exists(path)
    return _saved_hash(path) if path.is_dir() else digest(path.suffix, file_hash(path))


def visible(directory: Path) -> Iterator[Path]:
    """All files below ``directory`` but hidden ones and those in hidden folders."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from visible(path)
        elif path.is_file():
            yield path


def _named(directory: Path, files: Iterable[Path]) -> dict[str, Path]:
    return {path.relative_to(directory).as_posix(): path for path in files}


def _checkpoint_files(directory: Path, code: bool) -> Iterator[Path]:
    # A .gguf is a copy beside safetensors, and else the weights.
    unread = (*UNREAD, "*.gguf") if any(directory.glob("*.safetensors*")) else UNREAD
    beside = (path for path in directory.iterdir() if path.is_file())
    for path in beside:
        hidden = path.name.startswith(".")
        if not hidden and not any(fnmatch(path.name, pattern) for pattern in unread):
            yield path
    below = [*directory.glob("additional_chat_templates/*.jinja"), *_shards(directory)]
    if code:
        below += [path for path in visible(directory) if path.suffix == ".py"]
    yield from below


def _shards(directory: Path) -> list[Path]:
    """The files in folders below that an index of weights names."""
    names = set(_json(directory / INDEX).get("weight_map", {}).values())
    return [path for name in sorted(names) if "/" in name and (path := directory / name).is_file()]


def _borrowed(directory: Path) -> list[str]:
    """What ``auto_map`` takes from elsewhere, ``owner/name--module.Class``, with its content."""
    found = set()
    for name in CODE_FROM:
        said = _json(directory / name).get("auto_map", {})
        for one in said.values() if isinstance(said, dict) else [said]:
            found |= {_code_of(text) for text in _flat(one) if "--" in text}
    return sorted(found)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none. What is damaged is others' to say."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flat(classes: str | Sequence[str | None] | None) -> list[str]:
    return [classes] if isinstance(classes, str) else [one for one in classes or () if one]


def _code_of(reference: str) -> str:
    """A directory or a name on the hub, with the content of the model code there."""
    place, _, module = reference.partition("--")
    if (directory := Path(place)).is_dir():
        return f"{place} {files_hash(_named(directory, directory.glob('*.py')))}"
    return f"{place} {hub.commit(place, module.split('.')[0] + '.py', None)}"


def _saved_hash(directory: Path) -> str:
    state = _json(directory / STATE)
    if "_data_files" not in state:  # nothing that datasets has saved: its check says so
        return files_hash(_named(directory, visible(directory)))
    state.pop("_fingerprint", None)  # another one each time that the same rows are saved
    names = [INFO, *(one["filename"] for one in state["_data_files"])]
    return digest(
        json.dumps(state, sort_keys=True), *(file_hash(directory / one) for one in names)
    )
