"""A corpus becomes token windows ``[windows, length]``: seeded, content-hashed, counted."""

from __future__ import annotations

import hashlib
import os
import random
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.inputs import assets, texts
from harness.inputs.windows import document_windows, first_windows, random_windows


@dataclass(frozen=True)
class Tokens:
    """Token windows, int64: ``ids [windows, length]`` and ``heldout [holdout, length]``."""

    ids: Tensor
    heldout: Tensor
    name: str

    @property
    def hash(self) -> str:
        """sha256 over the shape and the bytes of ``ids``."""
        shape = "x".join(str(size) for size in self.ids.shape)
        content = self.ids.to(torch.int64).cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(shape.encode() + b"\n" + content).hexdigest()


class Corpus(Protocol):
    """Where token windows come from; a frozen dataclass named by ``_target_``."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    def check(self) -> None:
        """Raises ValueError, in one line, for anything that is missing."""
        ...

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """The windows; ``seed`` decides only where the corpus samples."""
        ...


@dataclass(frozen=True)
class WikiSummaries:
    """Openings of Wikipedia articles from the pinned asset; splits share no article.

    Calibration takes articles in an order given by the run's seed, the other splits in a fixed
    one. An article is its title, a blank line and its text; articles are joined by blank lines.
    """

    split: texts.Split = "calibration"
    windows: int = 16
    length: int = 256
    holdout: int = 0
    name: str = "wiki"

    def __post_init__(self) -> None:
        if self.split not in texts.SPLITS:
            known = list(texts.SPLITS)
            hint = assets.near(self.split, known)
            raise ValueError(f"split={self.split!r}: allowed are {', '.join(known)}{hint}")
        _check_sizes(self.windows, self.length, self.holdout)

    def check(self) -> None:
        """Fetches the asset (5 MB) if the cache doesn't have it."""
        assets.fetch(assets.WIKI_SUMMARIES)

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """The first windows of the split's articles."""
        articles = list(texts.wiki_articles(self.split))
        if self.split == "calibration":
            random.Random(seed).shuffle(articles)
        text = texts.join(f"{one['title']}{texts.BLANK_LINE}{one['extract']}" for one in articles)
        found = first_windows(text, tokenizer, self.windows + self.holdout, self.length, self.name)
        return _split(found, self.holdout, self.name)


@dataclass(frozen=True)
class LocalText:
    """A local text: .txt, .jsonl, .parquet, or a directory saved by ``datasets``.

    Args:
        path: the file or directory.
        key: the column with the text; by default ``text``, or the only column that holds text.
        sample: windows at random (calibration) instead of the first in order (evaluation).
        windows: None is all there are.
    """

    path: str
    key: str | None = None
    windows: int | None = None
    length: int = 512
    holdout: int = 0
    sample: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        _check_sizes(self.windows, self.length, self.holdout)
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).stem)

    def check(self) -> None:
        """Reads the file's text."""
        self._text()

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """Windows of the documents joined by blank lines."""
        return _from_text(self, self._text(), tokenizer, seed)

    def _text(self) -> str:
        text = texts.join(texts.local_documents(Path(self.path).expanduser(), self.key))
        if not text.strip():
            raise ValueError(f"{self.path}: the file holds no text")
        return text


@dataclass(frozen=True)
class HubText:
    """A dataset on the hub, prepared as GPTQ's evaluation does.

    Args:
        path: ``owner/name`` on the hub, or the same rows in a local file or directory as LocalText
            takes them (a .txt file is taken as it is); then ``config``, ``split``, ``revision`` and
            ``data_files`` say nothing, for they choose among what the hub has.
        config: the dataset's configuration.
        split: of the dataset.
        column: with the text.
        preparation: ``blank_lines`` joins the rows by blank lines (WikiText-2, PTB), ``spaces`` by
            spaces; ``documents`` takes one random window from each of random rows that are long
            enough (C4).
        windows: None is all there are.
        sample: windows at random instead of the first in order.
        revision: branch, tag or commit on the hub.
        data_files: pattern of the files that make up the split.
    """

    path: str
    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    preparation: Literal["blank_lines", "spaces", "documents"] = "blank_lines"
    windows: int | None = None
    length: int = 2048
    holdout: int = 0
    sample: bool = False
    revision: str | None = None
    data_files: str | None = None

    def __post_init__(self) -> None:
        _check_sizes(self.windows, self.length, self.holdout)
        known = ["blank_lines", "spaces", "documents"]
        if self.preparation not in known:
            hint = assets.near(self.preparation, known)
            raise ValueError(
                f"preparation={self.preparation!r}: allowed are {', '.join(known)}{hint}"
            )
        if self.preparation == "documents" and self.windows is None:
            raise ValueError(f"corpus {self.name}: preparation=documents needs windows")

    def check(self) -> None:
        """Asks the hub, or the local cache, for the dataset; reads a local file."""
        if texts.is_local(self.path):
            texts.local_documents(Path(self.path).expanduser(), self.column)
        else:
            texts.check_hub_dataset(self.path, self.revision)

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """Downloads the split on the first call."""
        documents = self._documents()
        if self.preparation == "documents":
            count = (self.windows or 0) + self.holdout
            found = document_windows(documents, tokenizer, count, self.length, self.name, seed)
            return _split(found, self.holdout, self.name)
        separator = " " if self.preparation == "spaces" else texts.BLANK_LINE
        return _from_text(self, texts.join(documents, separator), tokenizer, seed)

    def _documents(self) -> Sequence[str]:
        if texts.is_local(self.path):
            return texts.local_documents(Path(self.path).expanduser(), self.column)
        return texts.hub_documents(
            self.path, self.config, self.split, self.column, self.revision, self.data_files
        )


@dataclass(frozen=True)
class TokenFile:
    """Exact token ids ``[windows, length]`` from an array in an npz file.

    Args:
        path: the file.
        key: the array in it.
        windows: the first of them; None is all that ``holdout`` leaves.
        length: the first tokens of each; None is all.
        holdout: so many windows at the end are held out.
    """

    path: str
    key: str
    windows: int | None = None
    length: int | None = None
    holdout: int = 0
    name: str = "tokens"

    def __post_init__(self) -> None:
        _check_sizes(self.windows, self.length, self.holdout)

    def check(self) -> None:
        """Reads the array."""
        self._ids()

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """The windows as they stand in the file."""
        ids = self._ids()
        largest, known = int(ids.max()), len(tokenizer)
        if largest >= known:
            raise ValueError(f"{self.path}: token id {largest}, but the tokenizer has {known}")
        return _split(torch.from_numpy(ids), self.holdout, self.name)

    def _ids(self) -> np.ndarray:
        """The windows to be used, held-out ones last, int64."""
        ids = _array(Path(self.path).expanduser(), self.key)
        rows, columns = ids.shape
        windows = rows - self.holdout if self.windows is None else self.windows
        length = columns if self.length is None else self.length
        if windows < 1 or windows + self.holdout > rows or length > columns:
            raise ValueError(
                f"{self.path}: {self.key} holds {rows} windows of {columns} tokens; "
                f"{max(windows, 1)} + {self.holdout} held out of {length} are needed"
            )
        chosen = np.concatenate([ids[:windows], ids[rows - self.holdout :]])
        return np.ascontiguousarray(chosen[:, :length].astype(np.int64))


def save_tokens(path: Path, **tokens: Tokens) -> None:
    """Writes each corpus, held-out windows last, to an npz file that TokenFile reads."""
    partial = path.with_name(path.name + ".partial")
    arrays = {key: torch.cat([one.ids, one.heldout]).numpy() for key, one in tokens.items()}
    with partial.open("wb") as file:
        narrow = {key: ids.astype(np.int32) for key, ids in arrays.items()}
        np.savez_compressed(file, **narrow)  # type: ignore[arg-type]
    os.replace(partial, path)


def _from_text(
    corpus: LocalText | HubText, text: str, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Tokens:
    """Windows of ``text``, at random or the first in order; held-out ones come last."""
    count = None if corpus.windows is None else corpus.windows + corpus.holdout
    if corpus.sample and count is not None:
        found = random_windows(text, tokenizer, count, corpus.length, corpus.name, seed)
    else:
        found = first_windows(text, tokenizer, count, corpus.length, corpus.name)
    return _split(found, corpus.holdout, corpus.name)


def _split(ids: Tensor, holdout: int, name: str) -> Tokens:
    """The last ``holdout`` windows held out."""
    if len(ids) <= holdout:
        raise ValueError(f"corpus {name}: {len(ids)} windows, {holdout} of them held out")
    at = len(ids) - holdout
    return Tokens(ids[:at].contiguous(), ids[at:].contiguous(), name)


def _check_sizes(windows: int | None, length: int | None, holdout: int) -> None:
    bad = []
    if windows is not None and windows < 1:
        bad.append(f"windows={windows} (at least 1)")
    if length is not None and length < 2:
        bad.append(f"length={length} (at least 2)")
    if holdout < 0:
        bad.append(f"holdout={holdout} (at least 0)")
    if bad:
        raise ValueError("corpus: " + ", ".join(bad))


def _array(path: Path, key: str) -> np.ndarray:
    """The array ``key`` of an npz file: integers, two dimensions, not empty, none negative."""
    texts.check_exists(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an npz file")
    with np.load(path, allow_pickle=False) as file:
        if key not in file:
            known = list(file)
            hint = assets.near(key, known)
            raise ValueError(f"{path}: no key {key!r}; it has {', '.join(known)}{hint}")
        ids: np.ndarray = file[key]
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size or ids.min() < 0:
        raise ValueError(
            f"{path}: {key} is {ids.dtype} {list(ids.shape)}; ids [windows, length] are needed"
        )
    return ids
