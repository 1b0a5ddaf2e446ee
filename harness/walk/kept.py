"""What of the selection stays in full precision, and why; what can't be left like that.

Quantised are linears that a forward of text calls once. Beside them a block may hold

- convolutions, and other parameters that no linear owns: a state-space model's decays, a router's
  matrix, a mixture that can't be taken apart;
- linears that a forward calls several times (a shared projection), or whose weight the model's own
  code reads without a call, or whose forward is another (DeepSeek V4's grouped projection);
- linears that no forward of text calls: cross-attention without an encoder, adapters of other senses;
- linears that choose experts, or weigh a shared one.

All of that stays as it is and is named. But a model would be quantised in name only where much of what
computes stays: parameters of no linear, and linears that are called several times or not at all though
their weight is read, must not hold more than :data:`MOST` of the weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from harness.walk.experts import experts_of
from harness.walk.probe import CONTAINERS, Observation, UnsupportedModelError

MOST = 0.25  # of the weights that a forward of text uses
CONVOLUTION, ROUTER = "a convolution", "it chooses or weighs experts"
UNUSED = "no forward of text runs it"
OTHER, TIMES = "no linear's weight", "called {} times in a forward"
BARE = "read by the model's code without a call"
ODD = "a linear whose forward is none"


@dataclass(frozen=True)
class Kept:
    """What stays in full precision: a module, how many weights it holds, and why.

    ``said`` describes it in an error.
    """

    name: str
    weights: int
    why: str
    said: str = ""

    @property
    def misses(self) -> bool:
        """Whether it computes as a quantised linear does, and so leaves the model less quantised."""
        return self.why not in (CONVOLUTION, ROUTER, UNUSED)


Modules = Iterable[tuple[int, str, nn.Module]]


def kept_of(
    modules: Modules, blocks: Sequence[str], seen: Observation, include: Sequence[str]
) -> tuple[Kept, ...]:
    """What of ``modules`` (block, name, module) stays in full precision.

    Args:
        modules: what is selected.
        blocks: names of all decoder blocks.
        seen: in a forward of text.
        include: patterns; one that is more than ``*`` takes a router in that it names.

    Raises:
        UnsupportedModelError: which linears a forward calls depends on its values.
    """
    selected = list(modules)
    calls = Counter(read.linear for read in seen.reads)
    _refuse_chance(selected, calls)
    chosen = {name.rpartition(".")[0]: name for name in seen.experts}
    sizes = {name: len(experts_of(one)) for _, name, one in selected if name in seen.experts}
    found = []
    for _, name, module in selected:
        if isinstance(module, nn.Linear | Conv1D):
            why = _linear(name, seen, calls[name])
            if why is None and _routes(name, module, chosen, sizes, include):
                why = ROUTER
            if why is not None:
                weights = math.prod(module.weight.shape)
                found.append(Kept(name, weights, why, f"{name} is {why}"))
        elif not isinstance(module, nn.Embedding):
            found += _parameters(name, module)
    return tuple(found)


def refused(kept: Sequence[Kept], quantized: Sequence[int]) -> Mapping[str, str]:
    """Nothing, or by module what must not stay in full precision, if it is more than :data:`MOST`.

    Args:
        kept: all that stays.
        quantized: the numbers of weights of what would be quantised.
    """
    odd = [one for one in kept if one.misses]
    lost = sum(one.weights for one in odd)
    part = lost / max(1, lost + sum(quantized))
    if part <= MOST:
        return {}
    return {one.name: f"{one.said}; {part:.0%} of the weights would stay" for one in odd}


def _linear(name: str, seen: Observation, calls: int) -> str | None:
    """Why a linear can't be quantised, if so."""
    if name in seen.bare or name in seen.odd:
        return BARE if name in seen.bare else ODD
    if calls == 1:
        return None
    return TIMES.format(calls) if calls else UNUSED


def _parameters(name: str, module: nn.Module) -> list[Kept]:
    """The parameters of a module of its own that are no vectors."""
    matrices = {key: one for key, one in module.named_parameters(recurse=False) if one.ndim >= 2}
    if not matrices:
        return []
    weights = sum(one.numel() for one in matrices.values())
    if isinstance(module, _ConvNd):
        return [Kept(name, weights, CONVOLUTION)]
    key, one = max(matrices.items(), key=lambda item: item[1].numel())
    said = f"{name}.{key} {tuple(one.shape)} is {OTHER} (of a {type(module).__name__})"
    return [Kept(name, weights, OTHER, said)]


def _routes(
    name: str,
    module: nn.Module,
    parents: Mapping[str, str],
    sizes: Mapping[str, int],
    include: Sequence[str],
) -> bool:
    """Whether a linear beside experts has a row for each of them, or one in all."""
    if any(pattern.strip("*") and fnmatch(name, pattern) for pattern in include):
        return False
    for parent, experts in parents.items():
        inside = name.startswith(f"{parent}.") and not name.startswith(f"{experts}.")
        if inside and _rows(module) in (1, sizes.get(experts)):
            return True
    return False


def _rows(module: nn.Module) -> int:
    return module.nf if isinstance(module, Conv1D) else module.out_features  # type: ignore[return-value]


def _refuse_chance(selected: Modules, calls: Mapping[str, int]) -> None:
    """Refuses members of a list that a forward leaves out while it runs others: its path is chance."""
    modules = {name: module for _, name, module in selected}
    for name, module in modules.items():
        if not isinstance(module, CONTAINERS):
            continue
        running = {
            key: [
                calls[f"{name}.{key}.{inner}".rstrip(".")]
                for inner, one in member.named_modules()
                if isinstance(one, nn.Linear | Conv1D)
            ]
            for key, member in module.named_children()
        }
        idle = [key for key, counts in running.items() if counts and not any(counts)]
        if idle and any(map(any, running.values())):
            raise UnsupportedModelError(
                f"{name}.{idle[0]} does not run in a forward of text while others of {name} do: what "
                "runs depends on values, so that no two forwards take the same path"
            )
