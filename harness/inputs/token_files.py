"""Exact token windows from a file, and into one."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.inputs import assets, texts
from harness.inputs.contents import Contents
from harness.inputs.corpora import Tokens, check_windows, split_off
from harness.inputs.files import text_hash
from harness.inputs.tokenizing import NO_START, Bos, Start, put_before, start_of


@dataclass(frozen=True)
class TokenFile:
    """Exact token ids ``[windows, length]`` from an array in an npz file.

    Args:
        path: the file.
        key: the array in it.
        windows: the first of them; None is all that ``holdout`` leaves.
        length: the first tokens of each; None is all.
        holdout: so many windows at the end are held out.
        bos: ``auto`` and ``none`` take the ids as they stand; ``every`` puts the start token before
            each window that does not begin with it, ``first`` before the first window only. A
            window's length stays: its last token makes room.
    """

    path: str
    key: str
    windows: int | None = None
    length: int | None = None
    holdout: int = 0
    bos: Bos = "auto"
    name: str = "tokens"

    def __post_init__(self) -> None:
        check_windows(self.windows, self.length, self.holdout, self.bos)

    def check(self) -> None:
        """Reads the array."""
        self._ids()

    def contents(self) -> Contents:
        """A hash of the file."""
        return {"path": lambda: text_hash(Path(self.path).expanduser())}

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """The windows of the file; a note says so where they lack the start token of texts."""
        ids = torch.from_numpy(self._ids())
        largest, known = int(ids.max()), len(tokenizer)
        if largest >= known:
            raise ValueError(f"{self.path}: token id {largest}, but the tokenizer has {known}")
        if self.bos in ("every", "first"):
            start = start_of(self.bos, tokenizer)
            ids = self._led(ids, start)
        start, note = _start_in(ids, tokenizer)
        return split_off(ids, self.holdout, self.name, start, note if self.bos == "auto" else "")

    def _led(self, ids: Tensor, start: Start) -> Tensor:
        """``ids`` with the start token where it is wanted and missing."""
        room = replace(start, place="every").room(ids.shape[1], self.name)
        wanted = ~start.begins(ids)
        if start.place == "first":
            wanted[1:] = False
        led = replace(start, place="every").lead(ids[:, :room])
        return torch.where(wanted[:, None], led, ids)

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


def _start_in(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> tuple[Start, str]:
    """Where windows that are as they are have a start token, and a note where a text would have one."""
    usual = put_before(tokenizer)
    if not usual and tokenizer.bos_token_id is None:
        return NO_START, ""
    start = start_of("every", tokenizer)
    begins = start.begins(ids)
    found = int(begins.sum())
    if found == len(ids):
        return start, ""
    note = (
        f"the tokenizer puts {start.text} before a text, but {len(ids) - found} of {len(ids)} "
        "windows do not begin with it (bos=every puts it there)"
    )
    return (replace(start, place="first") if found else NO_START), note if usual else ""


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
        try:
            ids: np.ndarray = file[key]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: {key} can't be read ({error})") from None
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size or ids.min() < 0:
        raise ValueError(
            f"{path}: {key} is {ids.dtype} {list(ids.shape)}; ids [windows, length] are needed"
        )
    if ids.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{path}: {key} holds {ids.max()}, which is no token id")
    return ids
