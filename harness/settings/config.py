"""The typed configuration of a run, and its identity.

``run.py`` hands over plain dictionaries; nothing below it sees Hydra. A node with ``_target_``
becomes an object of that class, every value is coerced to the type of its field (so ``0`` and ``0.0``
are the same alpha), and all bad fields are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.evaluate.base import Evaluator
from harness.export.base import Kind
from harness.inputs.contents import Key, contents_of, readers
from harness.methods.base import Method
from harness.numerics.precision import Products
from harness.numerics.propagation import Propagation
from harness.recipe import Recipe
from harness.records.cache import CacheOptions
from harness.records.record import Record
from harness.records.whole import finished, lacking
from harness.settings.axes import Axes
from harness.settings.card import Card
from harness.settings.consistency import problems
from harness.settings.experts import Experts
from harness.settings.flat import pruned, text, value_at
from harness.settings.identity import described, fingerprint
from harness.settings.noise import Noise
from harness.settings.plugins import load_plugin, plugin_name, plugin_names
from harness.settings.stopping import Checkpoint, Stop
from harness.trackers.base import Tracker
from harness.walk.holding import Hold

CUSTOM = "custom"  # the protocol of an evaluation that has no name


class ConfigError(ValueError):
    """A configuration that can't run; the message is one line."""


@dataclass(frozen=True)
class Selection:
    """Which linears are quantised.

    Args:
        include: glob patterns on module names inside the decoder blocks.
        exclude: glob patterns of linears left in full precision.
        blocks: ``first:last`` as in a Python slice; null is all blocks.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    blocks: str | None = None


@dataclass(frozen=True)
class Config:
    """One run: what is quantised how, what is measured, and where the record goes.

    ``model``, ``calibration`` and ``tracker`` are plugins with the methods that
    :mod:`harness.pipeline` calls; ``evaluators`` are :class:`harness.evaluate.base.Evaluator`.
    ``own_calibration`` is a second corpus, whose statistics the method sees in the place of
    those of ``calibration``; QEP's correction never does. ``protocol`` is the name of what is
    measured, see :mod:`harness.command.protocols`. ``save`` names the kinds of checkpoints to leave,
    no part of a run's identity; ``save_misfits`` is what becomes of linears that one of them can't hold.
    ``hold`` says where the forwards of the walk wait, see :mod:`harness.walk.holding`; None chooses by the
    device's free memory. ``device_profile`` is a card that need not be there, for a dry run. ``precision``
    is that of float32 products in the model's forwards on CUDA: ``high`` is TF32.
    """

    model: Any
    method: Method
    calibration: Any
    evaluators: Mapping[str, Evaluator]
    tracker: Tracker
    axes: Axes
    qep: Propagation
    own_calibration: Any | None = None
    quantize: Selection = Selection()
    seed: int = 0
    noise: Noise = Noise()
    batch_tokens: int = 1024
    device: str = "cpu"
    device_profile: Card | None = None
    precision: Products = "highest"
    hold: Hold | None = None
    threads: int | None = None
    workers: int = 2
    results: str = "results"
    set: str = "local"
    force: bool = False
    dry_run: bool = False
    stop: Stop = Stop()
    checkpoint: Checkpoint = Checkpoint()
    experts: Experts = Experts()
    cache: CacheOptions = CacheOptions()
    baseline: bool = True
    save_tokens: bool = False
    save: tuple[str, ...] = ()
    save_misfits: Literal["refuse", "dense"] = "refuse"
    debug: bool = False
    command: str = ""
    protocol: str = CUSTOM
    plain: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if found := problems(self):
            raise ConfigError("; ".join(found))

    @property
    def reduced(self) -> bool:
        """Whether products have fewer bits than float32 has, see :attr:`precision`: only CUDA has such."""
        return self.precision != "highest" and self.device.startswith("cuda")

    @property
    def saves(self) -> tuple[str, ...]:
        """The kinds of checkpoints that are wanted, each once."""
        return tuple(dict.fromkeys(one for one in self.save if one != "none"))

    def kinds(self) -> dict[str, Kind]:
        """The kinds of checkpoints that a run which starts now leaves, by name.

        Those that are wanted, and those that lie there: what an earlier one left would be of other weights.
        """
        there = [name for name in plugin_names("export") if (self.directory / name).is_dir()]
        names = dict.fromkeys((*self.saves, *there))
        return {name: load_plugin("export", name)() for name in names}

    def sharing(self) -> Config:
        """This run as one of several: what runs have in common is kept for the next.

        A repeat for the noise has batches of its own, and so nothing in common.
        """
        if self.cache.reference is None and self.device == "cpu" and not self.noise.seed:
            return replace(self, cache=replace(self.cache, reference=True))
        return self

    @property
    def quantizes(self) -> bool:
        """Whether the method changes any weight; ``method=none`` does not."""
        return getattr(self.method, "quantizes", True)

    def codes(self) -> str | None:
        """The format in which the model's checkpoint stores codes; None where its weights are numbers."""
        found: str | None = getattr(self.model, "codes", lambda: None)()
        return found

    @property
    def budgeted(self) -> bool:
        """Whether bits are chosen under a budget."""
        return self.quantizes and self.axes.budgeted()

    def recipe(self, name: str, bits: int | None = None) -> Recipe:
        """What is done to the linear ``name``, see :meth:`harness.settings.axes.Axes.recipe`."""
        return self.axes.recipe(self.method, name, bits)

    @property
    def calibrations(self) -> dict[str, Any]:
        """The corpora that calibrate the run, by the names of their options, the main one first."""
        if not self.quantizes:
            return {}
        found = {"calibration": self.calibration}
        if self.own_calibration is not None:
            found[f"calibration.{self.method_name}"] = self.own_calibration
        return found

    @property
    def method_name(self) -> str:
        """The method's name on the command line: that of its file."""
        return plugin_name(self.method)

    def identity(self) -> dict[str, Any]:
        """What makes this run this run: no clock, no tracker, no paths of output.

        What has no influence is left out (the axes of ``method=none``, the damping of a correction
        that is off), so that equal work has an equal name. Paths are in it to be read; what counts
        are their :attr:`contents`.
        """
        plain = {key: described(part) for key, part in self._parts().items()}
        if self.quantizes:
            plain |= self.axes.described(self.method)
        if self.quantizes and self.qep.alpha == 0 and not any(self.qep.overrides.values()):
            plain["qep"] = {"alpha": 0.0, "statistics": self.qep.statistics}
        return plain

    def _parts(self) -> dict[str, Any]:
        """All that the identity describes."""
        parts = {"model": self.model, "eval": self.evaluators, "method": self.method}
        if self.quantizes:
            parts |= {
                "qep": self.qep,
                "quantize": self.quantize,
                **self.calibrations,
                "seed": self.seed,
            }
            if self.experts != Experts():
                parts["experts"] = self.experts
            if self.noise.seed:
                parts["noise"] = {"seed": self.noise.seed}
        if self.reduced:
            parts["precision"] = self.precision
        return parts

    @cached_property
    def contents(self) -> dict[Key, str]:
        """What the files and names on the hub held when this run was first looked at.

        Raises:
            ValueError: one can't be had; one line.
        """
        return contents_of(self._parts())

    def held(self, *parts: str) -> tuple[tuple[Key, str], ...]:
        """The contents of some parts (``model``, ``calibration``), to keep by what is made of them."""
        return tuple(item for item in self.contents.items() if item[0][0] in parts)

    def verify(self) -> None:
        """Raises ValueError if an input does not hold any more what this run is of."""
        for key, content in contents_of(self._parts()).items():
            if content != self.contents.get(key):
                raise ValueError(f"{self.setting(key)}: changed during the run; start it again")

    def setting(self, key: Key) -> str:
        """A setting as on the command line, for instance ``model.path=llama``."""
        return f"{'.'.join(key)}={text(value_at(self.identity(), key))}"

    @property
    def slug(self) -> str:
        """A readable name, for instance ``smollm2_135m-gptq-w3-a0.5``."""
        if not self.quantizes:
            return f"{self.model.name}-{self.method_name}"
        said = self.axes.said
        bits = f"w{said.bits}" if isinstance(said.bits, int) else f"auto{self.axes.budget:g}"
        group = f"g{said.group_size}" if said.group_size else ""
        parts = [self.model.name, self.method_name, bits + group, *self.axes.words(self.method)]
        alpha = self.qep.alpha if self.qep.alpha == "auto" else f"{self.qep.alpha:g}"
        seeds = f"-s{self.seed}" if self.seed else ""
        seeds += f"-n{self.noise.seed}" if self.noise.seed else ""
        target = "residual" if self.qep.target == "residual" and self.qep.alpha != 0 else ""
        return f"{'-'.join(parts)}-a{alpha}{target}{seeds}"

    @cached_property
    def stem(self) -> str:
        """Slug and hash of the identity but for contents: what runs of the same settings share."""
        named = {key for key, _ in readers(self._parts())}
        return f"{self.slug}-{fingerprint(pruned(self.identity(), named))}"

    @cached_property
    def run_id(self) -> str:
        """The name of the run's directory: the stem, and a hash of the contents where there are any."""
        contents = {".".join(key): content for key, content in self.contents.items()}
        return f"{self.stem}-{fingerprint(contents)}" if contents else self.stem

    @property
    def folder(self) -> Path:
        """Where the runs of the set lie."""
        return Path(self.results).expanduser() / self.set

    @property
    def directory(self) -> Path:
        """Where the record of this run lies."""
        return self.folder / self.run_id

    def alike(self) -> list[Path]:
        """The directories of runs with these settings, whatever their inputs held; reads none of these."""
        names = re.compile(re.escape(self.stem) + "(-[0-9a-f]{8})?")
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in found if names.fullmatch(path.name))

    def settled(self) -> Record | None:
        """The record of this run if nothing is left to do, ``force`` aside."""
        record = finished(self.directory) if self.alike() else None
        if record is not None and lacking(self.directory, record, self.saves):
            return None
        if record is None or record.stopped is None or self.stop.agrees(record.stopped):
            return record
        return None

    def reference(self) -> Config | None:
        """The full-precision run that this one is compared with, if any."""
        compared = self.baseline and self.quantizes and self.evaluators
        return self.full_precision() if compared else None

    def repeat(self, seed: int) -> Config:
        """This run in another order of summation, of what its inputs held when it was looked at."""
        made = replace(self, noise=Noise(seed), save=() if seed else self.save)
        vars(made)["contents"] = self.contents
        return made

    def full_precision(self) -> Config:
        """The run that measures the unquantised model with the same evaluators."""
        from harness.methods.none import FullPrecision

        return replace(self, method=FullPrecision(), force=False, save=())
