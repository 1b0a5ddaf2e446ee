"""Forwards that stand still: the two streams of some batches, side by side on one thread.

A *stream* is the model's own forward of one batch as a coroutine (greenlet), with the original
weights (*reference*) or with the weights decided so far (*quantised*). A *lane* owns the streams of
some batches and everything that they sum and measure, so that lanes share nothing but weights and
can run on threads of their own: small operations on one thread each, instead of all threads meeting
in every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import local
from typing import Any

import greenlet
import torch
from torch import Tensor

from harness.numerics.device import doubt
from harness.numerics.finite import NonFiniteError
from harness.numerics.kernels import squared_norms
from harness.numerics.statistics import Accumulator
from harness.walk.holding import Entry, Parking
from harness.walk.measured import Key, Kind, Measured, Side, Sums, merge, settled
from harness.walk.routing import Agreement, Choices, Counts


@dataclass
class Stream:
    """One forward of one batch in one of the two streams."""

    run: Callable[[], object]
    reference: bool
    kind: Kind
    batch: int
    parking: Parking | None = None  # where what it holds waits on the host
    coroutine: Any = None
    entry: Entry | None = None  # the block that it stands before
    inputs: Tensor | None = None
    before: str | None = None
    residuals: dict[str, Tensor] = field(default_factory=dict)  # by the module that reads it
    routing: str | None = None  # the mixture that the forward is in, until its experts are entered
    pool: Tensor | None = None  # the tokens that the experts read among which it stands


class Lane:
    """The streams of some batches, reference before quantised; all calls come from one thread."""

    def __init__(self, batches: Sequence[tuple[Stream, ...]]) -> None:
        self.batches = batches
        self.sums: dict[tuple[Key, Side], Sums] = {}
        self.counts: dict[tuple[int, Kind], Counts] = {}  # of choices, by block
        self._labels: dict[Key, str] = {}  # of what is in the sums
        self._choices: dict[tuple[str, int], Choices] = {}  # by mixture and batch
        self._pending: dict[Key, Tensor] = {}
        self._hub: Any = None
        self.running: Stream | None = None
        self.replaying = False  # a block runs that will run again

    def run_until(
        self,
        leader: str | None,
        sums: Mapping[Kind, Accumulator],
        reader: str | None = None,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        """Runs every stream until it stands before ``leader`` (to its end if None), batch by batch.

        Inputs are added to the sums of their kind, if there are any. ``reader`` is the module that has
        read the residual stream that ``leader`` adds to, ``kept`` are those whose stream later stages want.
        """
        for streams in self.batches:
            for stream in streams:
                self._switch_to(stream, stream.coroutine, leader)
            if sums:
                self._add(streams, sums, reader)
            self._keep(streams, kept)
        self._doubt_all()

    def run_to_block(self, block: str | None) -> None:
        """Runs every stream until it stands before ``block``, to its end if None, batch by batch."""
        for streams in self.batches:
            for stream in streams:
                self._choose_anew(stream)
                if stream.parking is not None:
                    stream.parking.unpark()
                self._switch_to(stream, stream.coroutine, block)
            for stream in streams:  # once both have been compared
                if stream.parking is not None and stream.entry is not None:
                    stream.parking.park(stream.entry.tensors())
        self._doubt_all()

    def replay(
        self,
        leader: str,
        add: Callable[[tuple[Stream, ...]], None],
        kept: frozenset[str] = frozenset(),
    ) -> None:
        """Runs every stream's block until it stands before ``leader``, ``add``s it and leaves it there.

        Batch by batch, so that one at a time is inside of its block. ``kept`` are the blocks whose stream
        later stages want.
        """
        self.replaying = True
        for streams in self.batches:
            inside: list[Any] = []
            try:
                for stream in streams:
                    assert stream.entry is not None
                    if stream.parking is not None:
                        stream.parking.fetch(stream.entry.tensors())
                    self._choose_anew(stream)
                    inside.append(greenlet.greenlet(stream.entry.run))
                    self._switch_to(stream, inside[-1], leader)
                add(streams)
            finally:
                for one in inside:
                    one.throw(greenlet.GreenletExit)
            for stream in streams:
                stream.inputs = stream.pool = None
                if stream.parking is not None:
                    stream.parking.give_back()
            self._keep(streams, kept)
        self.replaying = False
        self._doubt_all()

    def add_inputs(
        self, sums: Mapping[Kind, Accumulator], reader: str | None
    ) -> Callable[[tuple[Stream, ...]], None]:
        """What a replay adds: what enters the linear; see :meth:`run_until`."""
        return lambda streams: self._add(streams, sums, reader)

    def _add(
        self, streams: tuple[Stream, ...], sums: Mapping[Kind, Accumulator], reader: str | None
    ) -> None:
        reference, last = streams[0], streams[-1]
        assert last.inputs is not None
        lost = None
        if reader is not None and len(streams) > 1:
            lost = reference.residuals[reader] - last.residuals[reader]
        sums[last.kind].add(last.inputs, reference.inputs, lost)

    def _keep(self, streams: tuple[Stream, ...], kept: frozenset[str]) -> None:
        """Lets go of residual streams that no later stage wants."""
        for stream in streams:
            stream.residuals = {n: one for n, one in stream.residuals.items() if n in kept}

    def _choose_anew(self, stream: Stream) -> None:
        """Forgets what experts a forward has chosen that runs through its block again."""
        if stream.reference:
            self._choices = {
                key: one for key, one in self._choices.items() if key[1] != stream.batch
            }

    def _doubt_all(self) -> None:
        for key, label in self._labels.items():
            self._doubt(key, label)
        self._labels.clear()

    def _doubt(self, key: Key, label: str) -> None:
        """Doubts that the outputs of both streams have been finite."""
        sides: tuple[Side, Side] = ("calibration", "heldout")
        for found in filter(None, (self.sums.get((key, side)) for side in sides)):
            doubt(
                ~(found.sums[0] < torch.inf),
                lambda: NonFiniteError(f"activations that leave {label} are not finite"),
            )

    def _switch_to(self, stream: Stream, coroutine: Any, place: str | None) -> None:
        """Runs a stream, or its block, on to where it stands before ``place``."""
        if coroutine is None:
            coroutine = stream.coroutine = greenlet.greenlet(stream.run)
        self._hub, self.running = greenlet.getcurrent(), stream
        stream.inputs = stream.before = None
        coroutine.switch()
        if stream.before != place:
            where = stream.before or "the end of the model"
            raise RuntimeError(
                f"a forward stands before {where}, not before {place}: its path depends on data"
            )

    def gather(self, sums: Mapping[Kind, Accumulator]) -> None:
        """Adds all tokens of the experts among which the streams stand to the sums of their kind."""
        for streams in self.batches:
            self.add_pool(streams, sums)

    def add_pool(self, streams: tuple[Stream, ...], sums: Mapping[Kind, Accumulator]) -> None:
        """The same of one batch."""
        reference, last = streams[0], streams[-1]
        assert last.pool is not None
        sums[last.kind].add(last.pool, reference.pool)

    def choices(self) -> tuple[Choices, bool] | None:
        """What is being chosen where the running stream is, and whether it is the reference stream."""
        stream = self.running
        if stream is None or stream.routing is None or stream.kind == "own":
            return None
        key = stream.routing, stream.batch
        return self._choices.setdefault(key, Choices()), stream.reference

    def routed(self, block: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token and their values ``[tokens, k]`` for the running stream."""
        inside, stream = self.choices(), self.running
        assert stream is not None
        if inside is None:
            return index, weights
        choices, reference = inside
        if reference:
            choices.final = index, weights
            return index, weights
        assert stream.routing is not None
        del self._choices[stream.routing, stream.batch]
        index, weights, found = choices.routed(index, weights)
        if not self.replaying:
            if before := self.counts.get((block, stream.kind)):
                found.merge(before)
            self.counts[block, stream.kind] = found
        return index, weights

    def stand(self, name: str, inputs: Tensor) -> None:
        """Suspends the running stream before the linear ``name``."""
        assert self.running is not None
        self.running.inputs, self.running.before = inputs, name
        self._hub.switch()

    def stand_before(self, name: str, entry: Entry) -> None:
        """Suspends the running stream before the block ``name``."""
        stream = self.running
        assert stream is not None
        stream.entry, stream.before = entry, name
        self._hub.switch()
        stream.entry = None

    def measure(
        self, key: Key, label: str, output: Tensor, bias: Tensor | None, copy: bool
    ) -> None:
        """Keeps the reference output until the quantised stream of the same batch brings its own."""
        stream = self.running
        assert stream is not None
        if stream.kind == "own":
            return  # no second stream to compare with
        if stream.reference:
            self._pending[key] = output.clone() if copy else output
            return
        y = self._pending.pop(key)
        found = Sums(squared_norms(y, output, bias), y.numel() // y.shape[-1])
        if before := self.sums.get((key, stream.kind)):
            found.merge(before)
        self.sums[key, stream.kind] = found
        self._labels[key] = label

    def abandon(self) -> None:
        """Ends the streams that still stand somewhere."""
        for streams in self.batches:
            for stream in streams:
                if stream.coroutine is not None and not stream.coroutine.dead:
                    stream.coroutine.throw(greenlet.GreenletExit)


class Lanes:
    """Lanes side by side: batches shared out to ``threads`` threads; one lane needs no thread.

    Args:
        batches: all streams, those of a batch together.
        threads: how many lanes there may be.
        inside: the context in which every lane works, entered on its thread.
    """

    def __init__(
        self,
        batches: Sequence[tuple[Stream, ...]],
        threads: int,
        inside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        count = max(1, min(threads, len(batches)))
        self.lanes = [Lane(batches[i::count]) for i in range(count)]
        self._here, self._inside = local(), inside
        self._pools = [ThreadPoolExecutor(1, "walk") for _ in self.lanes] if count > 1 else []

    @property
    def current(self) -> Lane:
        """The lane of the calling thread."""
        lane: Lane = self._here.lane
        return lane

    def each(self, work: Callable[[int, Lane], None]) -> None:
        """``work(index, lane)`` on every lane's thread; the first error once all have come to rest."""

        def call(index: int) -> None:
            self._here.lane = self.lanes[index]
            with self._inside():
                work(index, self.lanes[index])

        if not self._pools:
            call(0)
            return
        with _single_threaded():
            jobs = [pool.submit(call, index) for index, pool in enumerate(self._pools)]
            wait(jobs)
        for job in jobs:
            job.result()

    def collect(self) -> tuple[dict[Key, Measured], dict[int, dict[Kind, Agreement]]]:
        """What the lanes have measured since the last call, and of passed blocks how they agreed on experts.

        Summed in the order of the lanes, and read all at once.
        """
        sums: dict[tuple[Key, Side], Sums] = {}
        for lane in self.lanes:
            merge(sums, lane.sums)
            lane.sums = {}
        passed = {key for key, _ in sums}
        counts: dict[tuple[int, Kind], Counts] = {}
        for lane in self.lanes:
            merge(counts, {key: one for key, one in lane.counts.items() if key[0] in passed})
            lane.counts = {key: one for key, one in lane.counts.items() if key[0] not in passed}
        return settled(sums, counts)

    def close(self) -> None:
        """Ends all streams and threads."""
        self.each(lambda index, lane: lane.abandon())
        for pool in self._pools:
            pool.shutdown()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Torch on one thread inside, also for threads that start from here on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
