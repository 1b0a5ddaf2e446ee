"""A corpus becomes token windows ``[windows, length]``: seeded, content-hashed, counted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.inputs import assets, texts
from harness.inputs.contents import Contents
from harness.inputs.drawn import awq_windows, gptq_windows
from harness.inputs.files import text_hash
from harness.inputs.names import name_of
from harness.inputs.tokenizing import Bos, Start, check_bos, start_of
from harness.inputs.windows import document_windows, first_windows, random_windows


@dataclass(frozen=True)
class Tokens:
    """Token windows, int64: ``ids [windows, length]`` and ``heldout [holdout, length]``.

    Args:
        ids: the windows.
        heldout: those of a calibration set that feed no statistic.
        name: of the corpus.
        start: where they have a start token; None where a corpus does not say.
        note: what a person should know about them, in a line; mostly nothing.
    """

    ids: Tensor
    heldout: Tensor
    name: str
    start: Start | None = None
    note: str = ""

    @property
    def hash(self) -> str:
        """sha256 over the shape and the bytes of ``ids``."""
        shape = "x".join(str(size) for size in self.ids.shape)
        content = self.ids.to(torch.int64).cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(shape.encode() + b"\n" + content).hexdigest()


class Corpus(Protocol):
    """Where token windows come from; a frozen dataclass named by ``_target_``.

    All of ours take ``bos``, see :func:`harness.inputs.tokenizing.start_of`.
    """

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
    bos: Bos = "auto"
    name: str = "wiki"

    def __post_init__(self) -> None:
        if self.split not in texts.SPLITS:
            known = list(texts.SPLITS)
            hint = assets.near(self.split, known)
            raise ValueError(f"split={self.split!r}: allowed are {', '.join(known)}{hint}")
        check_windows(self.windows, self.length, self.holdout, self.bos)

    def check(self) -> None:
        """Fetches the asset (5 MB) if the cache doesn't have it."""
        assets.fetch(assets.WIKI_SUMMARIES)

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """The first windows of the split's articles."""
        articles = list(texts.wiki_articles(self.split))
        if self.split == "calibration":
            random.Random(seed).shuffle(articles)
        text = texts.join(f"{one['title']}{texts.BLANK_LINE}{one['extract']}" for one in articles)
        start, count = start_of(self.bos, tokenizer), self.windows + self.holdout
        found = first_windows(text, tokenizer, count, self.length, self.name, start)
        return split_off(found, self.holdout, self.name, start)


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
    bos: Bos = "auto"
    name: str = ""

    def __post_init__(self) -> None:
        check_windows(self.windows, self.length, self.holdout, self.bos)
        if not self.name:
            object.__setattr__(self, "name", name_of(self.path))

    def check(self) -> None:
        """Reads the file's text."""
        self._text()

    def contents(self) -> Contents:
        """A hash of the file or directory."""
        return {"path": lambda: text_hash(Path(self.path).expanduser())}

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """Windows of the documents joined by blank lines."""
        return _from_text(self, self._text(), tokenizer, seed)

    def _text(self) -> str:
        return _joined(texts.local_documents(Path(self.path).expanduser(), self.key), self.path)


Preparation = Literal["blank_lines", "spaces", "documents", "gptq_documents", "awq_documents"]


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
            enough (C4); ``gptq_documents`` the very ones that GPTQ's script draws, and
            ``awq_documents`` those of AWQ's (:mod:`harness.inputs.drawn`).
        documents: the first so many rows; of ``awq_documents`` so many that are short enough; None
            is all there are.
        windows: None is all there are.
        fewer: fewer windows where joined rows have not so many, instead of an error.
        sample: windows at random instead of the first in order.
        revision: branch, tag or commit on the hub.
        data_files: pattern of the files that make up the split.
    """

    path: str
    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    preparation: Preparation = "blank_lines"
    documents: int | None = None
    windows: int | None = None
    fewer: bool = False
    length: int = 2048
    holdout: int = 0
    sample: bool = False
    bos: Bos = "auto"
    revision: str | None = None
    data_files: str | None = None

    def __post_init__(self) -> None:
        check_windows(self.windows, self.length, self.holdout, self.bos)
        known = list(get_args(Preparation))
        if self.preparation not in known:
            hint = assets.near(self.preparation, known)
            raise ValueError(
                f"preparation={self.preparation!r}: allowed are {', '.join(known)}{hint}"
            )
        needed = {
            "documents": "windows",
            "gptq_documents": "windows",
            "awq_documents": "documents",
        }
        option = needed.get(self.preparation)
        if option and getattr(self, option) is None:
            raise ValueError(f"{option}=None: preparation={self.preparation} needs a number")
        if self.documents is not None and self.documents < 1:
            raise ValueError(f"documents={self.documents} (at least 1)")

    def check(self) -> None:
        """Asks the hub, or the local cache, for the dataset; reads a local file."""
        if texts.is_local(self.path):
            texts.local_documents(Path(self.path).expanduser(), self.column)
        else:
            texts.hub_commit(self.path, self.revision)

    def contents(self) -> Contents:
        """A hash of the local file or directory, or the commit on the hub."""
        if texts.is_local(self.path):
            return {"path": lambda: text_hash(Path(self.path).expanduser())}
        return {"path": lambda: f"{self.path}@{texts.hub_commit(self.path, self.revision)}"}

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """Downloads the split on the first call."""
        documents, start = self._documents(), start_of(self.bos, tokenizer)
        count = None if self.windows is None else self.windows + self.holdout
        if self.preparation == "awq_documents":
            found = awq_windows(
                documents, tokenizer, self.documents or 1, count, self.length, self.name, start
            )
            return split_off(found, self.holdout, self.name, start)
        documents = documents if self.documents is None else documents[: self.documents]
        if self.preparation in ("documents", "gptq_documents"):
            draw = document_windows if self.preparation == "documents" else gptq_windows
            found = draw(documents, tokenizer, count or 1, self.length, self.name, seed, start)
            return split_off(found, self.holdout, self.name, start)
        separator = " " if self.preparation == "spaces" else texts.BLANK_LINE
        return _from_text(self, _joined(documents, self.path, separator), tokenizer, seed)

    def _documents(self) -> Sequence[str]:
        if texts.is_local(self.path):
            return texts.local_documents(Path(self.path).expanduser(), self.column)
        return texts.hub_documents(
            self.path, self.config, self.split, self.column, self.revision, self.data_files
        )


def _joined(documents: Iterable[str | None], path: str, separator: str = texts.BLANK_LINE) -> str:
    """One text of all documents, empty ones too, but for rows that have none."""
    text = texts.join((one for one in documents if one is not None), separator)
    if not text or text.isspace():
        raise ValueError(f"{path}: it holds no text")
    return text


def _from_text(
    corpus: LocalText | HubText, text: str, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Tokens:
    """Windows of ``text``, at random or the first in order; held-out ones come last."""
    count = None if corpus.windows is None else corpus.windows + corpus.holdout
    start, length, name = start_of(corpus.bos, tokenizer), corpus.length, corpus.name
    if corpus.sample and count is not None:
        found = random_windows(text, tokenizer, count, length, name, seed, start)
    else:
        fewer = isinstance(corpus, HubText) and corpus.fewer
        found = first_windows(text, tokenizer, count, length, name, start, fewer)
    return split_off(found, corpus.holdout, name, start)


def split_off(ids: Tensor, holdout: int, name: str, start: Start | None, note: str = "") -> Tokens:
    """The last ``holdout`` windows held out."""
    if len(ids) <= holdout:
        raise ValueError(f"corpus {name}: {len(ids)} windows, {holdout} of them held out")
    at = len(ids) - holdout
    return Tokens(ids[:at].contiguous(), ids[at:].contiguous(), name, start, note)


def check_windows(windows: int | None, length: int | None, holdout: int, bos: str) -> None:
    """Raises ValueError, in one line, for options that no corpus can have."""
    bad = []
    if windows is not None and windows < 1:
        bad.append(f"windows={windows} (at least 1)")
    if length is not None and length < 2:
        bad.append(f"length={length} (at least 2)")
    if holdout < 0:
        bad.append(f"holdout={holdout} (at least 0)")
    if bad:
        raise ValueError("; ".join(bad))
    check_bos(bos)
