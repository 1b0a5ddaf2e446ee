"""The checkpoints that a run leaves: written part by part while it goes on, in place when it is over.

    <run>/.checkpoint/<kind>/00000-00007.safetensors   what is stored of the linears of stages 0 to 7
    <run>/.checkpoint/<kind>/rest-0.safetensors        and of everything else, at the end
    <run>/<kind>/                                      the whole, put there by one renaming

A part is written when it is large enough, and before a checkpoint of the run: a killed run that goes on
finds those of the stages that it does not quantise again. No more is held in memory than one part, of all
kinds together, and a stage's linears.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save

from harness.export.base import Kind, Source, write_json
from harness.inputs.weight_files import tensor_bytes
from harness.methods.base import Quantized
from harness.recipe import Recipe
from harness.records.disk import remove
from harness.records.model_card import card
from harness.records.pieces import DamagedError
from harness.records.record import CHECKPOINT, Record
from harness.records.sealed import verified, write_sealed
from harness.walk.architecture import Linear, Stage
from harness.walk.experts import experts_of, fused, is_unfused

PART_BYTES = 2 * 10**9


@dataclass
class Saving:
    """The checkpoints of one run in the making.

    Args:
        directory: of the run.
        kinds: by name; none where nothing is to be saved.
        model: the model that is being quantised.
        tokenizer: of the model.
        recipes: of every linear that is quantised.
        linears: these.
        origin: ``base_model`` and ``license`` of the source, for the model card.
        part_bytes: from which on what is held of all kinds is written.
    """

    directory: Path
    kinds: Mapping[str, Kind]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    linears: Mapping[str, Linear] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    part_bytes: int = PART_BYTES
    _pending: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)
    # Stages that are pending: first, end.
    _span: tuple[int, int] = field(default=(0, 0), init=False)
    _passed: set[str] = field(default_factory=set, init=False)

    @property
    def folder(self) -> Path:
        """Where parts lie."""
        return self.directory / CHECKPOINT

    def resume(self, first: int, decided: Iterable[str]) -> None:
        """Keeps the parts before stage ``first``, whose linears are ``decided``, and no others."""
        for path in self.folder.glob("*/*"):
            if path.parent.name not in self.kinds or not _is_part(path) or _end(path) > first:
                remove(path)
        self._span = (first, first)
        self._passed = set(decided)

    def has(self, last: int) -> bool:
        """Whether whole parts of all kinds make up the stages up to ``last``, and no others."""
        for name in self.kinds:
            every = (self.folder / name).glob("*.safetensors")
            parts = sorted(path for path in every if _is_part(path) and _end(path) <= last + 1)
            ends = [0, *map(_end, parts)]
            if [_first(path) for path in parts] != ends[:-1] or ends[-1] != last + 1:
                return False
            if not all(map(_is_whole, parts)):
                return False
        return True

    def passed(
        self, stage: Stage, quantized: Mapping[str, Quantized], targets: Mapping[str, Tensor]
    ) -> None:
        """Takes up what is stored of a stage's linears, whose weights are in place already.

        Args:
            stage: that has been passed.
            quantized: by linear.
            targets: W* by linear, what was quantised.
        """
        for linear in stage.linears:
            if linear.mixture:  # its experts are stored together, at the end
                continue
            self._passed.add(linear.name)
            for name, kind in self.kinds.items():
                self._add(name, self._stored(kind, linear, quantized[linear.name], targets))
        self._span = (self._span[0], stage.index + 1)
        if self.held_bytes >= self.part_bytes:
            self.flush()

    @property
    def held_bytes(self) -> int:
        """What is held in memory for the next parts, of all kinds together."""
        return sum(map(_size, self._pending.values()))

    def flush(self) -> None:
        """Writes what is pending of the stages so far."""
        first, end = self._span
        if first == end:
            return
        for name in self.kinds:
            self._write(name, f"{first:05d}-{end - 1:05d}.safetensors")
        self._span = (end, end)

    def finish(self, record: Record) -> dict[str, dict[str, Any]]:
        """Completes the checkpoints, puts them in place, and tells what they hold by kind.

        ``files``: bytes by name; ``bytes``: of all; ``checkpoint_bytes``: that the quantised linears take
        in them, and ``bits_per_weight``; ``dense``: those of these that are stored as dense weights.
        """
        return {name: self._finished(name, kind, record) for name, kind in self.kinds.items()}

    def held(self, kind: Kind) -> dict[str, Recipe]:
        """The linears that a kind stores as codes."""
        if not kind.codes:
            return {}
        return {
            name: recipe
            for name, recipe in self.recipes.items()
            if kind.problem(self.linears[name], recipe) is None
        }

    def _stored(
        self, kind: Kind, linear: Linear, quantized: Quantized, targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        recipe = self.recipes[linear.name]
        if kind.codes and kind.problem(linear, recipe) is None:
            form = recipe.spec.of_weight(targets[linear.name]).form
            return kind.tensors(linear, quantized, form)
        return self._dense({f"{linear.name}.weight": linear.parameter})

    def _dense(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Dense weights under the names that the source's checkpoint has for them."""
        found: dict[str, Tensor] = revert_weight_conversion(self.model, tensors)
        return found

    def _add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        pending = self._pending.setdefault(name, {})
        pending |= {key: _alone(one.detach().cpu()) for key, one in tensors.items()}

    def _write(self, name: str, file: str) -> None:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / file, self._pending.pop(name, {}), {})

    def _finished(self, name: str, kind: Kind, record: Record) -> dict[str, Any]:
        count = 0
        for tensors in self._others():
            self._add(name, tensors)
            if _size(self._pending[name]) >= self.part_bytes:
                self._write(name, f"rest-{count}.safetensors")
                count += 1
        if self._pending.get(name):
            self._write(name, f"rest-{count}.safetensors")
        parts = sorted((self.folder / name).glob("*.safetensors"))
        final = self.folder / f"{name}.final"
        remove(final)
        final.mkdir()
        held = self.held(kind)
        source = Source(self.model, self.tokenizer, held)
        if self.model._auto_class is not None:
            custom_object_save(self.model, final, config=self.model.config)  # type: ignore[arg-type]
        kind.write(final, parts, source)
        if self.model.can_generate():
            write_json(
                final / "generation_config.json",
                json.loads(self.model.generation_config.to_json_string()),
            )
        self.tokenizer.save_pretrained(final)
        stored = self._bytes(parts) if held else self._weights * self.model.dtype.itemsize
        bits = 8 * stored / self._weights if stored else 8.0 * self.model.dtype.itemsize
        dense = [one for one in self.recipes if one not in held] if kind.codes else []
        said = card(record, self.origin, name, bits, kind.notes(source), dense)
        (final / "README.md").write_text(said, encoding="utf-8")
        files = {path.name: path.stat().st_size for path in sorted(final.iterdir())}
        self._publish(final, self.directory / name)
        return {
            "files": files,
            "bytes": sum(files.values()),
            "checkpoint_bytes": stored,
            "bits_per_weight": bits,
            "dense": dense,
        }

    def _publish(self, final: Path, target: Path) -> None:
        """Puts a whole folder in the place of an earlier one, if any."""
        for path in final.iterdir():
            if path.is_file():
                _to_disk(path)
        old = self.folder / f"{target.name}.old"
        remove(old)
        if target.exists():
            os.replace(target, old)
        os.replace(final, target)
        remove(old)

    def _others(self) -> Iterator[dict[str, Tensor]]:
        """All tensors but those of the linears that have passed, each once, as they are stored."""
        mixtures = {key: one for key, one in self.model.named_modules() if is_unfused(one)}
        state = self.model.state_dict(keep_vars=True)
        tied: Mapping[str, str] = self.model.all_tied_weights_keys
        skipped = {f"{name}.weight" for name in self._passed}
        skipped |= {one for one, other in tied.items() if state.get(one) is state.get(other)}
        skipped |= set(self.model._keys_to_ignore_on_save or ())
        experts = tuple(
            f"{key}.{number}."
            for key, one in mixtures.items()
            for number in range(len(experts_of(one)))
        )
        skipped |= {key for key in state if key.startswith(experts)} if experts else set()
        rest = self._dense({key: one for key, one in state.items() if key not in skipped})
        for key, tensor in rest.items():
            yield {key: tensor}
        for key, one in mixtures.items():  # a layer at a time
            yield self._dense({f"{key}.{part}": tensor for part, tensor in fused(one).items()})

    @property
    def _weights(self) -> int:
        """How many weights the quantised linears have."""
        return sum(one.shape[0] * one.shape[1] for one in self.linears.values())

    def _bytes(self, parts: Iterable[Path]) -> int:
        """Those that the weights of the quantised linears take, with all that goes with the codes."""
        stored = 0
        for part in parts:
            for key, size in tensor_bytes(part).items():
                owner, _, what = key.rpartition(".")
                if owner in self.recipes and what != "bias":
                    stored += size
        return stored


def _is_part(path: Path) -> bool:
    return path.suffix == ".safetensors" and path.name[0].isdigit()


def _is_whole(path: Path) -> bool:
    """Whether a part is as it was written; where it is not, its stages are done again."""
    try:
        verified(path)
    except (OSError, SafetensorError, DamagedError):
        return False
    return True


def _first(path: Path) -> int:
    return int(path.stem.partition("-")[0])


def _end(path: Path) -> int:
    return int(path.stem.partition("-")[2]) + 1


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(one.nbytes for one in tensors.values())


def _alone(tensor: Tensor) -> Tensor:
    """A tensor that is all of its memory, as safetensors wants it."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
