"""How far the quantised model's next-token distributions are from the full-precision model's.

With p and q the distributions of the full-precision and of the quantised model after each prefix:

    kl               mean of Σ_v p_v (log p_v − log q_v), in nats
    top1_agreement   share of prefixes where both have the same most likely token

Both need the logits of two models at once. Those of the full-precision model are not kept (16k
tokens would be 3 GB); what enters its output head is (38 MB). The quantised model's own head,
which no method changes, then reads both: whatever the model does to logits happens to both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.evaluate.base import Context, ReferenceMissing
from harness.numerics.device import there
from harness.numerics.precision import precise
from harness.records.cache import address
from harness.records.pieces import DamagedError, piece_bytes, read_piece, write_piece

CHUNK = 1 << 19  # logits worked on at once: so few that they stay in a processor's cache
DEVICE_CHUNK = 1 << 24  # on a device: enough to keep it busy
FORMAT = 2  # of kept states; part of their key
STATES, ABOUT = "states.bin", "about.json"


def reference_key(context: Context, token_hash: str) -> str:
    """The cache's key of the full-precision model's states on some tokens."""
    return address("head-inputs", format=FORMAT, model=context.model_hash, tokens=token_hash)


def has_reference(context: Context, token_hash: str) -> bool:
    """Whether the full-precision model's states on these tokens are kept, all of them intact."""
    key, cache = reference_key(context, token_hash), context.cache
    if key in cache.memory:
        return True
    folder = cache.find(key)
    if folder is None:
        return False
    try:
        states = States.kept(folder)
        for window in range(states.shape[0]):
            states[window : window + 1]
    except (OSError, DamagedError, ReferenceMissing) as error:
        cache.drop(key, error)
        return False
    return True


def save_reference(context: Context, token_hash: str, states: list[Tensor]) -> None:
    """Keeps ``states``, batches of ``[windows, length, hidden]``, in one atomic write.

    Where the cache does not take them, this process remembers them while it has the cache open.
    """
    key, cache = reference_key(context, token_hash), context.cache
    windows = torch.cat(states)
    about = {"shape": list(windows.shape), "dtype": str(windows.dtype).removeprefix("torch.")}

    def write(folder: Path) -> None:
        with (folder / STATES).open("wb") as file:
            for index, window in enumerate(windows):
                write_piece(file, f"window {index}", window)
        (folder / ABOUT).write_text(json.dumps(about))

    if not cache.put(key, write):
        cache.memory[key] = windows


def reference_states(context: Context, corpus: str, token_hash: str) -> States | Tensor:
    """The kept states ``[windows, length, hidden]``, by slices of windows.

    Raises:
        ReferenceMissing: they are not kept; so does a slice that has been damaged since it was found.
    """
    key, cache = reference_key(context, token_hash), context.cache
    if key in cache.memory:
        windows: Tensor = cache.memory[key]
        return windows
    folder = cache.find(key)
    try:
        if folder is not None:
            return States.kept(folder)
    except (OSError, DamagedError) as error:
        cache.drop(key, error)
    raise ReferenceMissing(
        f"{corpus}: the full-precision model's states are not in {cache.folder}; "
        "evaluate the full-precision model again"
    )


@dataclass(frozen=True)
class States:
    """States in a file; ``states[first:last]`` is ``[windows, length, hidden]``, verified.

    Args:
        path: the file, a piece a window.
        shape: windows, length, hidden.
        dtype: that of the states.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def kept(cls, folder: Path) -> States:
        """Those that :func:`save_reference` has put into ``folder``.

        Raises:
            DamagedError: it is not said what they are.
        """
        try:
            about = json.loads((folder / ABOUT).read_text())
            dtype = getattr(torch, about["dtype"])
            assert isinstance(dtype, torch.dtype)
            windows, length, hidden = map(int, about["shape"])
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise DamagedError(f"{folder / ABOUT}: damaged ({error!r})") from None
        path = folder / STATES
        if path.stat().st_size != windows * piece_bytes((length, hidden), dtype):
            raise DamagedError(f"{path}: not as long as {windows} windows are")
        return cls(path, (windows, length, hidden), dtype)

    def __getitem__(self, windows: slice) -> Tensor:
        """Opens the file anew: several threads read.

        Raises:
            ReferenceMissing: the file is damaged or gone.
        """
        first, last, _ = windows.indices(self.shape[0])
        one = self.shape[1:]
        try:
            with self.path.open("rb") as file:
                file.seek(first * piece_bytes(one, self.dtype))
                found = [
                    read_piece(file, f"window {index}", one, self.dtype)
                    for index in range(first, last)
                ]
        except (OSError, DamagedError) as error:
            raise ReferenceMissing(str(error)) from error
        return torch.stack(found)


@dataclass(frozen=True)
class Scores:
    """Per window the mean over its predicted tokens: loss, and KL and agreement if compared."""

    loss: Tensor
    divergence: Tensor | None = None
    agreement: Tensor | None = None


def score(logits: Tensor, ids: Tensor, reference: Tensor | None = None) -> Scores:
    """Scores of ``logits [windows, length, vocabulary]`` on ``ids [windows, length]``.

    The logits at position t predict token t + 1; the first token of a window is not predicted.
    ``reference`` are the full-precision model's logits at the same places. Log-probabilities exist
    for a few rows at a time only; sums are float64, and stay on the device of the logits.
    """
    rows = []
    every = there(ids, logits.device)
    chunk_size = CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK
    step = max(1, chunk_size // logits.shape[-1])
    for window, targets in enumerate(every[:, 1:]):
        totals = torch.zeros(3, dtype=torch.float64, device=logits.device)
        for at in range(0, len(targets), step):
            chunk = slice(at, min(at + step, len(targets)))
            other = None if reference is None else reference[window, chunk]
            totals += _totals(logits[window, chunk], targets[chunk], other)
        rows.append(totals / len(targets))
    loss, divergence, agreement = torch.stack(rows).unbind(1)
    return Scores(loss) if reference is None else Scores(loss, divergence, agreement)


def _totals(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    """Sums over rows: loss, KL divergence, agreement; the latter two 0 without a reference."""
    ours = torch.log_softmax(precise(logits), -1)
    loss = -ours.gather(1, targets[:, None]).double().sum()
    zero = torch.zeros_like(loss)
    if reference is None:
        return torch.stack([loss, zero, zero])
    # As few passes over the vocabulary as there can be: they cost a tenth of a small model's forward.
    theirs = precise(reference)
    probability = torch.softmax(theirs, -1)
    top = theirs.argmax(-1, keepdim=True)
    agreement = (ours.gather(1, top)[:, 0] == ours.amax(-1)).double().sum()
    normaliser = theirs.gather(1, top) - probability.gather(1, top).log()  # log Σ exp
    ratio = torch.sub(theirs, ours, out=ours).sub_(normaliser)  # log p − log q
    divergence = torch.linalg.vecdot(probability, ratio).double().sum()
    return torch.stack([loss, divergence, agreement])
