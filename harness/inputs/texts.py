"""Where text comes from: the wiki asset, local files, the hub. A list of documents each time."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict

from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from harness.inputs import assets, hub
from harness.inputs.decoding import read_parquet, read_text, without_mark

Split = Literal["calibration", "evaluation", "tasks"]
# Shares of the articles, in the order of a hash of their titles.
SPLITS: Mapping[str, tuple[float, float]] = {
    "calibration": (0.0, 0.5),
    "evaluation": (0.5, 0.75),
    "tasks": (0.75, 1.0),
}
BLANK_LINE = "\n\n"
PLAIN = (".txt", ".md", ".tokens")  # files that are one document
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character, escaped
LINES = (".jsonl", ".json", ".ndjson")  # files with a JSON object on each line


class Article(TypedDict):
    """A Wikipedia article: its opening paragraph, one line about it, and its field."""

    title: str
    extract: str
    description: str
    topic: str


@cache
def wiki_articles(split: Split) -> tuple[Article, ...]:
    """The articles of one split of the wiki asset; no article is in two splits."""
    content = json.loads(assets.fetch(assets.WIKI_SUMMARIES).read_text(encoding="utf-8"))
    articles = sorted(
        content.values(), key=lambda one: hashlib.sha256(one["title"].encode()).digest()
    )
    first, last = SPLITS[split]
    return tuple(articles[int(first * len(articles)) : int(last * len(articles))])


def local_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl or parquet file, or of a directory saved by ``datasets``.

    Raises:
        ValueError: in one line, for a file that is missing, empty or of another kind.
    """
    check_exists(path)
    if path.is_dir():
        rows = _saved_rows(path)
    elif path.suffix == ".parquet":
        rows = read_parquet(path)
    elif path.suffix in LINES:
        # Not splitlines(), which also cuts at line separators that JSON leaves inside of strings.
        lines = enumerate(read_text(path).split("\n"), 1)
        rows = [_row(path, number, line) for number, line in lines if line.strip()]
    else:
        others = ", ".join((*LINES, ".parquet"))
        raise ValueError(
            f"{path}: texts are read from {', '.join(PLAIN)}, rows from {others} or a directory of datasets"
        )
    return [without_mark(row) for row in rows]


def local_documents(path: Path, key: str | None = None) -> list[str]:
    """The documents of a local file: a .txt file is one, elsewhere each row is one, even an empty one.

    Rows that have no text, or null, are left out; line ends inside of a row are text and stay.

    Args:
        path: .txt, .jsonl, .parquet, or a directory saved by ``datasets``.
        key: the column with the text; by default ``text``, or the only column that holds text.

    Raises:
        ValueError: in one line, for a key that is missing or holds something else than text.
    """
    check_exists(path)
    if path.is_file() and path.suffix in (*PLAIN, ""):
        return [read_text(path)]
    rows = local_rows(path)
    if not rows:
        raise ValueError(f"{path}: the file holds no rows")
    known = list(dict.fromkeys(name for row in rows for name in row))
    key = key or _text_key(path, known, rows)
    if key not in known:
        hint = assets.near(key, known)
        raise ValueError(f"{path}: no key {key!r}; it has {', '.join(known)}{hint}")
    found = [(number, row[key]) for number, row in enumerate(rows, 1) if row.get(key) is not None]
    for number, value in found:
        if not isinstance(value, str):
            kind = type(value).__name__
            what = "bytes that are not UTF-8" if kind == "bytes" else f"{kind} and no text"
            raise ValueError(f"{path}: row {number}: {key!r} holds {what}")
    return [value for _, value in found]


def is_local(path: str) -> bool:
    """Whether ``path`` is a file or a directory here and not the name of a dataset on the hub."""
    file = Path(path).expanduser()
    return file.exists() or file.suffix in (".parquet", *PLAIN, *LINES)


def hub_documents(
    path: str,
    name: str | None,
    split: str,
    column: str,
    revision: str | None = None,
    data_files: str | None = None,
) -> Sequence[str]:
    """One column of a dataset on the hub, or of its copy in the cache of ``datasets``."""
    import datasets

    files = {split: data_files} if data_files else None
    # The branch itself may have moved on.
    known = hub_commit(path, revision) if revision else cached_hub_commit(path)
    data = datasets.load_dataset(path, name, split=split, revision=known, data_files=files)
    check_commit(path, known, data)
    if column not in data.column_names:
        known = data.column_names
        hint = assets.near(column, known)
        raise ValueError(f"corpus {path!r}: no column {column!r}; it has {', '.join(known)}{hint}")
    documents: Sequence[str] = data[column]  # read from disk row by row
    return documents


def cached_hub_commit(path: str, revision: str | None = None) -> str | None:
    """The commit of a dataset by what is known here; None where the hub has to be asked.

    A revision that is no commit is not looked for in the cache of ``datasets``, which keeps no branches
    and no tags: what lies there may be of any.
    """
    if revision and hub.COMMIT.fullmatch(revision):
        return revision
    known = hub.cached_commit(path, "README.md", revision, "dataset")
    return known if known or revision else hub.prepared_commit(path)


def hub_commit(path: str, revision: str | None = None) -> str:
    """The commit of a dataset: the revision where it is one, that in the local cache, that on the hub.

    Raises:
        ValueError: there is no such dataset or revision, or only the hub could tell, and it can't be reached.
    """
    try:
        known = cached_hub_commit(path, revision)
        return known or hub.commit(path, "README.md", revision, "dataset")
    except RevisionNotFoundError:
        raise ValueError(f"corpus {path!r}: no revision {revision!r} on the hub") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ValueError(f"corpus {path!r}: no such dataset on the hub") from None
    except (HTTPError, OSError) as error:
        asked = f" to ask for revision {revision!r}, whose commit would do" if revision else ""
        raise ValueError(
            f"corpus {path!r}: the hub can't be reached{asked} ({str(error).splitlines()[0]}); give a "
            "local file instead (calibration=text calibration.path=FILE, eval=text eval.path=FILE)"
        ) from None


def check_commit(path: str, known: str | None, data: Any) -> None:
    """Refuses what ``datasets`` has read if its cache says that it is of another commit."""
    files = [Path(one["filename"]) for one in data.cache_files]
    read = {part for file in files for part in file.parts if hub.COMMIT.fullmatch(part)}
    if known and read and known not in read:
        raise ValueError(f"corpus {path!r}: {known} is wanted, {', '.join(read)} was read")


def hub_reachable() -> bool:
    """Whether the hub answers at all, without retrying."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info("Salesforce/wikitext", timeout=hub.TIMEOUT)
    except HfHubHTTPError:
        return True
    except (HTTPError, OSError):
        return False
    return True


def join(documents: Iterable[str], separator: str = BLANK_LINE) -> str:
    """One text; by default joined by blank lines, as GPTQ's evaluation does."""
    return separator.join(documents)


def check_exists(path: Path) -> None:
    """Raises ValueError for a file that is missing or empty, with the nearest name there is."""
    if not path.exists():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        hint = assets.near(
            str(path), [str(path.parent / one.name) for one in filter(_holds, siblings)]
        )
        raise ValueError(f"{path}: no such file{hint}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")


def _holds(path: Path) -> bool:
    """Whether a path may hold a text: a file, or a directory saved by ``datasets``."""
    # Not pathlib's, which raise where a directory may not be entered.
    return any(map(os.path.isfile, (path, path / "state.json", path / "dataset_dict.json")))


def _saved_rows(path: Path) -> list[dict[str, Any]]:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: not a directory saved by datasets (save_to_disk)") from None
    if isinstance(data, datasets.DatasetDict):
        splits = ", ".join(f"{path}/{split}" for split in data)
        raise ValueError(f"{path}: holds several splits; give one of {splits}")
    return list(data)


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {number} is not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}: line {number} is not a JSON object")
    if SURROGATE.search(line):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{path}: line {number} holds half of a surrogate pair") from None
    return row


def _text_key(path: Path, known: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """``text``, or the only one of the keys that holds text in some row."""
    if "text" in known:
        return "text"
    columns = [key for key in known if any(isinstance(row.get(key), str) for row in rows)]
    if len(columns) != 1:
        raise ValueError(f"{path}: which key holds the text? it has {', '.join(known)}")
    return columns[0]
