"""What a run keeps on its way, so that a killed one goes on from its last finished blocks.

    <run>/.checkpoint/00000-00007.safetensors    stages 0 to 7: weights as the modules store them,
                                                 and in the header the rows and seconds so far

Each file appears atomically and holds what came after the one before, so that keeping a model costs
writing it once. It has checksums of its header and of every tensor: what is damaged is left out, with
all that came after it, and said so. The walk passes decided stages without a stop, and nothing in it
is random, so a run that goes on ends with the numbers of one that was never killed. That needs the
same code, machine and data: a checkpoint of others is left out, and said so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.records.disk import remove
from harness.records.pieces import DamagedError
from harness.records.record import CHECKPOINT
from harness.records.recorder import Recorder
from harness.records.saving import Saving
from harness.records.sealed import verified, write_sealed
from harness.walk.architecture import Linear, Plan, Stage


@dataclass
class Checkpoints:
    """The checkpoints of one run; ``every`` blocks, None for none."""

    directory: Path
    plan: Plan
    recorder: Recorder
    saving: Saving
    say: Callable[[str], None]
    every: int | None = None
    _first: int = field(default=0, init=False)  # stage of the next file
    _rows: tuple[int, int] = field(default=(0, 0), init=False)  # rows in the files before

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.directory / CHECKPOINT

    def resume(self) -> Mapping[str, Tensor]:
        """Puts rows and times of the files back; returns the decided weights ``[out, in]``."""
        decided: dict[str, Path] = {}
        header: dict[str, Any] = {}
        for header, names, path in self._files():
            decided |= dict.fromkeys(names, path)
            for row in header["layers"]:
                self.recorder.layer(row)
            for row in header["blocks"]:
                self.recorder.block(row)
            self._first = header["last"] + 1
        if header:
            self.recorder.resumed(header["seconds"], header["started"], header["resumed"])
        self.saving.resume(self._first, decided)
        self._rows = len(self.recorder.layers), len(self.recorder.blocks)
        return Decided(decided, {linear.name: linear for linear in self.plan.linears})

    def passed(self, stage: Stage) -> None:
        """Keeps what is new if ``stage`` ends a block that is to be kept, or the last one."""
        stages = self.plan.stages
        last = stage.index + 1 == len(stages)
        ends = last or stages[stage.index + 1].block != stage.block
        if self.every is None or not ends:
            return
        blocks = {one.block for one in stages[self._first : stage.index + 1]}
        if last or len(blocks) >= self.every:
            self._save(stage.index)

    def _save(self, last: int) -> None:
        self.saving.flush()
        recorder = self.recorder
        header = {
            "origin": self._origin(),
            "last": last,
            "layers": recorder.layers[self._rows[0] :],
            "blocks": recorder.blocks[self._rows[1] :],
            "seconds": recorder.seconds(),
            "started": recorder.record.started,
            "resumed": recorder.record.resumed,
        }
        linears = [
            one for stage in self.plan.stages[self._first : last + 1] for one in stage.linears
        ]
        weights = {one.name: one.parameter.detach().cpu().contiguous() for one in linears}
        if not self.folder.is_dir():
            remove(self.folder)
        self.folder.mkdir(exist_ok=True)
        write_sealed(self._path(self._first, last), weights, header)
        self._first, self._rows = last + 1, (len(recorder.layers), len(recorder.blocks))

    def _path(self, first: int, last: int) -> Path:
        return self.folder / f"{first:05d}-{last:05d}.safetensors"

    def _files(self) -> Iterator[tuple[dict[str, Any], list[str], Path]]:
        """Header, linears and path of each file that continues the one before, from stage 0 on."""
        first = 0
        while found := sorted(self.folder.glob(f"{first:05d}-*.safetensors")):
            try:
                header = verified(found[-1])
            except (OSError, SafetensorError, DamagedError) as error:
                self.say(f"{found[-1]}: damaged ({error}): what it held is done again")
                remove(found[-1])
                return
            if header["origin"] != self._origin():
                self.say(
                    "the checkpoint is of other code, data, machine or batch_tokens: left out"
                )
                return
            if not self.saving.has(header["last"]):
                kinds = ",".join(self.saving.kinds)
                self.say(
                    f"the checkpoint lacks what save={kinds} holds of its linears, whole: left out"
                )
                return
            yield header, list(header["sums"]), found[-1]
            first = header["last"] + 1

    def _origin(self) -> dict[str, Any]:
        """What the numbers depend on besides the run's identity."""
        record = self.recorder.record
        return {
            "environment": record.environment,
            "git_commit": record.git_commit,
            "hashes": {
                key: value
                for key, value in record.hashes.items()
                if key == "model" or key.startswith("calibration")
            },
        }


@dataclass(frozen=True)
class Decided(Mapping[str, Tensor]):
    """The weights ``[out, in]`` of a checkpoint by linear, read when they are asked for."""

    paths: Mapping[str, Path]
    linears: Mapping[str, Linear]

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.paths[name], "pt") as file:
            # A copy: a tensor in a file lies at any address, which matrix products may round by.
            stored: Tensor = file.get_tensor(name).clone()
        return stored.T if self.linears[name].transposed else stored

    def __contains__(self, name: object) -> bool:
        return name in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)
