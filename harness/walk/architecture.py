"""What is to be quantised in a decoder, and what of it can't be; no family names.

A *linear* is an ``nn.Linear`` or ``Conv1D`` (GPT-2; weight stored ``[in, out]``) inside a decoder
block; a mixture's experts are made of such (:mod:`harness.walk.experts`). Linears that read the very
same tensor one after the other (q/k/v, gate/up) form a *stage*. Which modules are blocks and what reads
what is seen by :mod:`harness.walk.probe`; what stays in full precision, and why, is decided by
:mod:`harness.walk.kept`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from fractions import Fraction
from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.numerics.precision import working
from harness.walk.experts import experts_of
from harness.walk.kept import Kept, kept_of, refused
from harness.walk.probe import Read, UnsupportedModelError, decoder_blocks, observe
from harness.walk.sharing import shared

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Mixture:
    """The experts of one layer.

    Args:
        name: of the module that holds them.
        block: the index of its block.
        module: it.
        router: the module around it, inside of which experts are chosen.
        chosen: how many experts a token has.
    """

    name: str
    block: int
    module: nn.Module
    router: nn.Module
    chosen: int

    @property
    def share(self) -> Fraction:
        """The part of all tokens that one expert reads, on an average."""
        return Fraction(self.chosen, len(experts_of(self.module)))


@dataclass(frozen=True)
class Linear:
    """One linear of a decoder block; its weight is read and written as ``[out, in]``.

    Args:
        name: of the module.
        block: the index of its block.
        module: it.
        mixture: of an expert's linear, what it is an expert of.
        first: whether it reads tokens of the layer as they are: a mixture's first projections do.
    """

    name: str
    block: int
    module: nn.Module
    mixture: Mixture | None = None
    first: bool = False

    @property
    def share(self) -> Fraction:
        """The part of all tokens that it reads: of an expert, on an average over experts."""
        return self.mixture.share if self.mixture else Fraction(1)

    @property
    def transposed(self) -> bool:
        """Whether the module stores its weight ``[in, out]``."""
        return isinstance(self.module, Conv1D)

    @property
    def parameter(self) -> Tensor:
        """The weight as the module stores it."""
        return cast(Tensor, self.module.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        rows, columns = self.parameter.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def precision(self) -> torch.dtype:
        """Of its statistics and of the numerics on its weight: float32, or float64 of a float64 model."""
        return working(self.parameter.dtype)

    def weight(self) -> Tensor:
        """The weight ``[out, in]`` in :attr:`precision`."""
        stored = self.parameter.detach()
        return (stored.T if self.transposed else stored).to(self.precision)

    def stored(self, weight: Tensor) -> Tensor:
        """``weight [out, in]`` in the layout and dtype that the module stores."""
        like = self.parameter
        return (weight.T if self.transposed else weight).to(like.device, like.dtype).contiguous()


@dataclass(frozen=True)
class Stage:
    """Linears that read one tensor.

    Args:
        index: in the order of calls.
        block: that they belong to.
        linears: in the order of calls.
        source: the earlier stage that read the tensor already.
        stream: the module that reads the residual stream to which ``writers`` add their output.
        writers: names of those linears.
    """

    index: int
    block: int
    linears: tuple[Linear, ...]
    source: int | None = None
    stream: str | None = None
    writers: tuple[str, ...] = ()

    @property
    def leader(self) -> str:
        """The linear that is called first."""
        return self.linears[0].name


@dataclass(frozen=True)
class Plan:
    """The decoder blocks in order and the stages to be quantised in the order of their calls.

    ``overwritten`` names the modules whose output the model changes in place afterwards (Falcon
    adds the attention's output to the MLP's). ``kept`` are the selected parameters that stay in full
    precision, ``mixtures`` the layers of experts.
    """

    block_names: tuple[str, ...]
    blocks: tuple[nn.Module, ...]
    stages: tuple[Stage, ...]
    overwritten: frozenset[str] = frozenset()
    kept: tuple[Kept, ...] = ()
    mixtures: tuple[Mixture, ...] = ()

    @property
    def linears(self) -> list[Linear]:
        """All linears to be quantised, in the order of their calls."""
        return [linear for stage in self.stages for linear in stage.linears]


def plan(
    model: PreTrainedModel,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    blocks: str | None = None,
) -> Plan:
    """The plan of ``model`` for the linears that match ``include`` and not ``exclude``.

    Args:
        model: any decoder that transformers builds; it may be without weights, on the meta device.
        include: glob patterns on module names.
        exclude: glob patterns on module names.
        blocks: the blocks to quantise, ``first:last`` as in a Python slice; None is all.

    Raises:
        UnsupportedModelError: no decoder blocks; linears whose weight is shared; or too much that is
            no linear, or is called several times in a forward, see :mod:`harness.walk.kept`.
        WeightlessError: without weights its forward does not run.
        ValueError: nothing is selected.
    """
    chosen = Selected(model, tuple(include), tuple(exclude), blocks)
    linears = {linear.name: linear for linear in chosen.linears()}
    if not linears:
        raise ValueError(
            f"no linear is selected by include={list(include)}, exclude={list(exclude)}, "
            f"blocks={blocks}"
        )
    chosen.refuse_shared(linears)
    seen, every = observe(model), decoder_blocks(model)
    kept = kept_of(chosen.modules(), tuple(every), seen, chosen.include)
    for one in kept:
        linears.pop(one.name, None)
    if said := refused(kept, [math.prod(one.shape) for one in linears.values()]):
        chosen.refuse(said)
    reads = [read for read in seen.reads if read.linear in linears]
    stages = tuple(_stages(reads, linears))
    mixtures = {one.mixture.name: one.mixture for one in linears.values() if one.mixture}
    return Plan(
        tuple(every),
        tuple(every.values()),
        stages,
        seen.overwritten,
        kept,
        tuple(mixtures.values()),
    )


@dataclass(frozen=True)
class Selected:
    """What ``include``, ``exclude`` and ``blocks`` leave of a model, and what they must not leave."""

    model: PreTrainedModel
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    blocks: str | None

    def linears(self) -> Iterator[Linear]:
        """The selected linears, block by block."""
        mixtures: dict[str, Mixture] = {}
        chosen = observe(self.model).experts
        for index, name, module in self.modules():
            if not isinstance(module, nn.Linear | Conv1D):
                continue
            holder = name.rsplit(".", 2)[0]
            if holder not in chosen:
                yield Linear(name, index, module)
                continue
            if holder not in mixtures:
                experts, router = (
                    self.model.get_submodule(one) for one in (holder, _parent(holder))
                )
                mixtures[holder] = Mixture(holder, index, experts, router, chosen[holder])
            first = module is next(self.model.get_submodule(_parent(name)).children())
            yield Linear(name, index, module, mixtures[holder], first)

    def refuse_shared(self, linears: Mapping[str, Linear]) -> None:
        """Refuses linears whose weight is, wholly or in part, another parameter too.

        One that is rounded would round the other, before its turn or against ``exclude``.
        """
        weights = {one: f"{one}.weight" for one in linears}
        others = dict(shared(self.model, set(weights.values())))
        said = "{} and {} share their memory: not supported"
        found = {one: weight for one, weight in weights.items() if weight in others}
        self.refuse({one: said.format(found[one], others[found[one]]) for one in found})

    def refuse(self, found: Mapping[str, str]) -> None:
        """Raises UnsupportedModelError with the first of what is ``found`` by module, and a way out."""
        if found:
            first, *others = found.values()
            more = f" (and {len(others)} more)" if others else ""
            raise UnsupportedModelError(f"{first}{more}{self.without(found)}")

    def without(self, names: Iterable[str]) -> str:
        """What leaves these modules in full precision, as it is typed into a shell; a clause.

        Modules of all blocks are named by one pattern, where it matches nothing else. Nothing, where
        no linear would be left.
        """
        names = set(names)
        if all(linear.name in names for linear in self.linears()):
            return ""
        here = [name for _, name, _ in self.modules()]
        patterns = dict.fromkeys(self.exclude)
        for name in (name for name in here if name in names):
            pattern = self._in_every_block(name)
            alike = {one for one in here if fnmatch(one, pattern)}
            patterns[pattern if alike <= names else name] = None
        typed = json.dumps(list(patterns), separators=(",", ":"))
        return f"; 'quantize.exclude={typed}' leaves it in full precision"

    def _in_every_block(self, name: str) -> str:
        """The pattern of what has the place of the module ``name`` in any block."""
        block = next(one for one in decoder_blocks(self.model) if f"{name}.".startswith(f"{one}."))
        return f"{block.rpartition('.')[0]}.*{name.removeprefix(block)}"

    def modules(self) -> Iterator[tuple[int, str, nn.Module]]:
        """The selected modules of all kinds with the index of their block."""
        every = decoder_blocks(self.model)
        chosen = range(len(every))[parse_blocks(self.blocks)]
        for index, (block, module) in enumerate(every.items()):
            for key, one in module.named_modules():
                name = f"{block}.{key}".rstrip(".")
                wanted = _matches(name, self.include) and not _matches(name, self.exclude)
                if index in chosen and wanted:
                    yield index, name, one


def parse_blocks(text: str | None) -> slice:
    """The slice that ``first:last`` stands for."""
    parts = (text or ":").split(":")
    if len(parts) != 2 or not all(part == "" or part.lstrip("-").isdigit() for part in parts):
        raise ValueError(f"quantize.blocks={text!r}: want first:last, for instance 0:10")
    first, last = (int(part) if part else None for part in parts)
    return slice(first, last)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _stages(reads: Sequence[Read], linears: Mapping[str, Linear]) -> Iterator[Stage]:
    """Neighbours that read one tensor, in one block."""
    first_reader: dict[int, int] = {}
    groups = groupby(reads, key=lambda read: (read.tensor, linears[read.linear].block))
    for index, ((tensor, block), group) in enumerate(groups):
        readers = tuple(linears[read.linear] for read in group)
        yield Stage(index, block, readers, first_reader.get(tensor))
        first_reader.setdefault(tensor, index)
