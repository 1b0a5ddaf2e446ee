"""Models larger than their device: a decoder block is there only while something computes with it.

``model.streaming=true`` leaves the blocks' weights where loading has put them, in the checkpoint's
mapped files, which take no memory that the system could not have back (in the host's memory where
``model.dtype`` is another than the file's). The model's own forward enters a block and leaves it; the
first to enter brings its weights to the device, the last to leave gives them back. Weights that were
changed meanwhile go to a file, which is mapped in their place.

While the device computes with a block the next one is on its way (:class:`Supply`), so at most two are
there at a time; what else the device holds is the embeddings, the head and the streams' activations. In a
walk the streams of all batches pass in step, so each block comes once. On a device the forwards of an
evaluation go from block to block together (:func:`in_step`), so that a block comes once for many batches.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import greenlet
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.numerics.device import Arrival, Courier
from harness.walk.probe import decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


T = TypeVar("T")
R = TypeVar("R")


class Supply:
    """Has the block on its way that comes after the one that forwards are inside of, two in all.

    Args:
        courier: brings tensors to the device.
        folder: where the files with changed weights are made.
    """

    def __init__(self, courier: Courier, folder: Path) -> None:
        self.blocks: list[StreamedBlock] = []  # in the order of their calls
        self.courier, self.folder = courier, folder
        self.lock = threading.Lock()
        self._coming: tuple[StreamedBlock, Arrival] | None = None

    def take(self, block: StreamedBlock) -> dict[str, Tensor]:
        """The weights of ``block`` on the device; what has come for nothing is let go."""
        (expected, arrival), self._coming = self._coming or (None, None), None
        if expected is not block or arrival is None:
            arrival = self._sent(block)
        return dict(zip(block.parameters, arrival(), strict=True))

    def look_ahead(self) -> None:
        """Sends for the next block where only one is there."""
        inside = [index for index, one in enumerate(self.blocks) if one.inside]
        if self._coming is None and len(inside) == 1 and inside[0] + 1 < len(self.blocks):
            following = self.blocks[inside[0] + 1]
            self._coming = following, self._sent(following)

    def _sent(self, block: StreamedBlock) -> Arrival:
        return self.courier.send([one.data for one in block.parameters.values()])


@dataclass
class StreamedBlock:
    """The weights of one decoder block and how many forwards are inside of it.

    Args:
        parameters: by their names in the block; their data are on the host while nobody is inside.
        supply: of the model's blocks.
    """

    parameters: dict[str, nn.Parameter]
    supply: Supply
    inside: int = 0
    gate: Callable[[StreamedBlock], None] | None = None  # asked before a forward enters
    _host: dict[str, Tensor] = field(default_factory=dict)
    _placed: dict[str, int] = field(default_factory=dict)

    def arrive(self) -> None:
        """A forward comes to the block, and enters it once it may."""
        if self.gate is not None:
            self.gate(self)
        self.enter()

    def enter(self) -> None:
        """The weights are on the device until as many have left as entered."""
        with self.supply.lock, torch.inference_mode(False), torch.no_grad():
            if not self.inside:
                placed = self.supply.take(self)
                for name, parameter in self.parameters.items():
                    self._host[name] = parameter.data
                    parameter.data = placed[name]
                    self._placed[name] = parameter.data_ptr()
            self.inside += 1
            self.supply.look_ahead()

    def leave(self) -> None:
        """The last one out gives the weights back, those with other data than before to a file."""
        with self.supply.lock, torch.inference_mode(False), torch.no_grad():
            self.inside -= 1
            if self.inside:
                return
            changed = {
                name: one.data
                for name, one in self.parameters.items()
                if one.data_ptr() != self._placed[name]
            }
            self._host |= mapped(changed, self.supply.folder)
            for name, parameter in self.parameters.items():
                parameter.data = self._host.pop(name)
            self.supply.look_ahead()


def mapped(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The same tensors in a file without a name: it is gone when nobody maps it any more."""
    if not tensors:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder, suffix=".safetensors")
    os.close(handle)
    try:
        save_file({name: one.contiguous() for name, one in tensors.items()}, path)
        return load_file(path)
    finally:
        os.unlink(path)


def stream_blocks(model: PreTrainedModel, courier: Courier, folder: Path) -> list[StreamedBlock]:
    """Has the decoder blocks of ``model`` come and go; all the rest of it is placed for good.

    Args:
        model: the model as it was loaded, on the host.
        courier: brings tensors to the device.
        folder: where the files with changed weights are made.
    """
    supply = Supply(courier, folder)
    within: set[int] = set()
    for block in decoder_blocks(model).values():
        parameters = dict(block.named_parameters())
        within |= {id(one) for one in parameters.values()}
        one = StreamedBlock(parameters, supply)
        block.register_forward_pre_hook(lambda module, args, one=one: one.arrive())
        block.register_forward_hook(
            lambda module, args, output, one=one: one.leave(), always_call=True
        )
        block.streamed = one  # type: ignore[assignment]
        supply.blocks.append(one)
    for kept in [*model.parameters(), *model.buffers()]:
        if id(kept) not in within:
            (kept.data,) = courier.send([kept.data])()
    return supply.blocks


@contextmanager
def resident(block: nn.Module) -> Iterator[None]:
    """The weights of ``block`` are on the device inside, as they always are unless it is streamed."""
    streamed = getattr(block, "streamed", None)
    if streamed is None:
        yield
        return
    streamed.enter()
    try:
        yield
    finally:
        streamed.leave()


def streamed_blocks(model: PreTrainedModel) -> list[StreamedBlock]:
    """The blocks of a streamed model in the order of their calls; none of one that is not."""
    found = [getattr(block, "streamed", None) for block in decoder_blocks(model).values()]
    return [one for one in found if one is not None]


def in_step(
    work: Callable[[T], R], items: Sequence[T], blocks: Sequence[StreamedBlock]
) -> list[R]:
    """``work`` of every item: forwards of a streamed model, which go from block to block together.

    Each is a coroutine that waits in front of a block until all that are behind have come as far; then the
    block is brought, and all that wait for it run through it. ``work`` must not enter a mode of torch that a
    forward runs in.
    """
    hub = greenlet.getcurrent()
    order = {id(one): index for index, one in enumerate(blocks)}
    waiting: dict[Any, StreamedBlock] = {}
    results: dict[int, R] = {}

    def wait(block: StreamedBlock) -> None:
        waiting[greenlet.getcurrent()] = block
        hub.switch()

    def run(index: int) -> None:
        results[index] = work(items[index])

    coroutines = [greenlet.greenlet(run) for _ in items]
    for one in blocks:
        one.gate = wait
    try:
        for index, coroutine in enumerate(coroutines):
            coroutine.switch(index)
        while waiting:
            block = min(waiting.values(), key=lambda one: order[id(one)])
            block.enter()
            try:
                for coroutine in [one for one, place in waiting.items() if place is block]:
                    del waiting[coroutine]
                    coroutine.switch()
            finally:
                block.leave()
    finally:
        for one in blocks:
            one.gate = None
        for coroutine in coroutines:
            if not coroutine.dead:
                coroutine.throw(greenlet.GreenletExit)
    return [results[index] for index in range(len(items))]
