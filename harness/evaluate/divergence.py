"""How far the quantised model's next-token distributions are from the full-precision model's.

With p and q the distributions of the full-precision and of the quantised model after each prefix:

    kl               mean of Σ_v p_v (log p_v − log q_v), in nats
    top1_agreement   share of prefixes where both have the same most likely token

Both need the logits of two models at once. Those of the full-precision model are not kept (16k
tokens would be 3 GB); what enters its output head is (38 MB). The quantised model's own head,
which no method changes, then reads both: whatever the model does to logits happens to both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.evaluate.base import Context
from harness.numerics.precision import precise
from harness.records.cache import address

CHUNK = 1 << 19  # logits worked on at once: so few that they stay in a processor's cache
DEVICE_CHUNK = 1 << 24  # on a device: enough to keep it busy
STATES = "states.safetensors"


class ReferenceMissing(RuntimeError):
    """The full-precision model's states are not in the cache; its evaluation has to run again."""


def reference_key(context: Context, token_hash: str) -> str:
    """The cache's key of the full-precision model's states on some tokens."""
    return address("head-inputs", model=context.model_hash, tokens=token_hash)


def has_reference(context: Context, token_hash: str) -> bool:
    """Whether the cache has the full-precision model's states on these tokens."""
    return context.cache.find(reference_key(context, token_hash)) is not None


def save_reference(context: Context, token_hash: str, states: list[Tensor]) -> None:
    """Keeps ``states``, batches of ``[windows, length, hidden]``, in one atomic write."""
    with context.cache.create(reference_key(context, token_hash)) as folder:
        save_file({"states": torch.cat(states)}, folder / STATES)


@contextmanager
def reference_states(context: Context, corpus: str, token_hash: str) -> Iterator[States]:
    """The kept states, read as they are asked for.

    Raises:
        ReferenceMissing: the cache does not have them.
    """
    folder = context.cache.find(reference_key(context, token_hash))
    if folder is None:
        raise ReferenceMissing(
            f"{corpus}: the full-precision model's states are not in {context.cache.folder}; "
            "evaluate the full-precision model again"
        )
    with safe_open(folder / STATES, "pt") as file:
        yield States(file.get_slice("states"))


@dataclass(frozen=True)
class States:
    """States in a file; ``states[first:last]`` is ``[windows, length, hidden]``."""

    stored: object

    def __getitem__(self, windows: slice) -> Tensor:
        found = self.stored[windows]  # type: ignore[index]
        assert isinstance(found, Tensor)
        return found


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
    for a few rows at a time only; sums are float64.
    """
    rows = []
    for window in range(len(ids)):
        targets = ids[window, 1:].to(logits.device)
        chunk_size = CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK
        step = max(1, chunk_size // logits.shape[-1])
        totals = torch.zeros(3, dtype=torch.float64)
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
        return torch.stack([loss, zero, zero]).cpu()
    # As few passes over the vocabulary as there can be: they cost a tenth of a small model's forward.
    theirs = precise(reference)
    probability = torch.softmax(theirs, -1)
    top = theirs.argmax(-1, keepdim=True)
    agreement = (ours.gather(1, top)[:, 0] == ours.amax(-1)).double().sum()
    normaliser = theirs.gather(1, top) - probability.gather(1, top).log()  # log Σ exp
    ratio = torch.sub(theirs, ours, out=ours).sub_(normaliser)  # log p − log q
    divergence = torch.linalg.vecdot(probability, ratio).double().sum()
    return torch.stack([loss, divergence, agreement]).cpu()
