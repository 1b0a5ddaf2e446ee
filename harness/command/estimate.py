"""What a sweep will cost, before any of it starts: ``dry_run=true``.

Operations are counted by the functions that also fill the record, on the model without its weights.
Memory and time are estimates: memory from the largest things that exist at once, time as if
everything ran at the speed that a matrix product has on this machine at this moment. On a card they are
those of :mod:`harness.command.on_device`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedModel

from harness.command.checks import planned, skeleton
from harness.command.console import Console
from harness.command.measure import card_here, product_speed
from harness.command.on_device import (
    COLUMNS,
    PROCESS,
    Job,
    Taken,
    best,
    cells,
    duration,
    logits,
)
from harness.inputs.corpora import Tokens
from harness.numerics.precision import working
from harness.planning import quantising_flops, stage_moments, walk_memory
from harness.records.record import RecordError, read_record
from harness.settings.config import Config
from harness.settings.reading import calibration_tokens, tokenizer_of
from harness.walk.limits import hidden_size
from harness.walk.live import present
from harness.walk.weightless import WeightlessError


@dataclass(frozen=True)
class Estimate:
    """Floating-point operations by phase and effective bits, as the record will have them.

    ``memory`` is in bytes that the process holds, ``seconds`` at the machine's speed; ``ways`` are those of
    running on a card, and ``streamed`` whether the model is so as it is configured.
    """

    flops: Mapping[str, float]
    memory: float
    bits_per_weight: float
    seconds: float
    ways: tuple[Taken, ...] = ()
    streamed: bool = False

    @property
    def work(self) -> float:
        """All floating-point operations."""
        return sum(self.flops.values())

    def cells(self, on_card: bool) -> list[str]:
        """A row of the table."""
        first = [f"{self.bits_per_weight:.2f}", _teras(self.work)]
        if on_card:
            return [*first, *cells(self.ways, self.streamed)]
        return [*first, f"{self.memory / 1e9:.1f}", duration(self.seconds)]


@dataclass
class Estimator:
    """Estimates the runs of a sweep; what they share is found out once."""

    _evaluations: dict[str, float] = field(default_factory=dict)

    def __call__(self, config: Config) -> Estimate:
        """What one run takes, its full-precision baseline apart."""
        model = skeleton(config)
        flops = self._flops(config, model)
        memory, bits = self._memory(config, model), self._bits(config, model)
        if not config.device.startswith("cuda"):
            seconds = sum(flops.values()) / speed_of(config)
            return Estimate(flops, memory, bits, seconds)
        card = card_here(config.device, _width(model))
        ways = tuple(self._job(config, model).ways(card, flops.get("evaluate", 0.0)))
        seconds = best(ways).seconds
        streamed = getattr(config.model, "streaming", False)
        return Estimate(flops, memory, bits, seconds, ways, streamed)

    def work(self, config: Config) -> float:
        """Floating-point operations of one run; where it runs need not be this machine."""
        return sum(self._flops(config, skeleton(config)).values())

    def _flops(self, config: Config, model: PreTrainedModel) -> dict[str, float]:
        flops: dict[str, float] = {}
        if config.quantizes:
            tokens, own = _windows(config)
            chosen = planned(config)
            heldout = tokens.heldout.numel()
            flops |= quantising_flops(config, model, chosen, tokens.ids.shape, heldout, own.shape)
        if config.evaluators:
            flops["evaluate"] = self._evaluation(config, model)
        return flops

    def _job(self, config: Config, model: PreTrainedModel) -> Job:
        none = torch.zeros(0, 2, dtype=torch.int64)
        windows = (none, none, none)
        if config.quantizes:
            tokens, own = _windows(config)
            windows = (tokens.ids, tokens.heldout, own)
        return Job(config, model, planned(config), windows, _dtype(config, model))

    def _evaluation(self, config: Config, model: PreTrainedModel) -> float:
        full = not config.quantizes
        key = repr((config.model, config.evaluators, full))
        if key not in self._evaluations:
            tokenizer = tokenizer_of(config)
            self._evaluations[key] = sum(
                float(one.flops(model, tokenizer, full)) for one in config.evaluators.values()
            )
        return self._evaluations[key]

    def _bits(self, config: Config, model: PreTrainedModel) -> float:
        """Bits per weight: those of the packed linears, or of a float where nothing is quantised."""
        if not config.quantizes:
            return 8.0 * _dtype(config, model).itemsize
        if config.axes.budget is not None:
            return config.axes.budget
        linears = planned(config).linears
        packed = [config.recipe(one.name).storage(*one.shape) for one in linears]
        return sum(one.total for one in packed) / sum(one.codes[0] for one in packed)

    def _memory(self, config: Config, model: PreTrainedModel) -> float:
        """The process, the weights, and the larger of what calibration and evaluation add."""
        dtype = _dtype(config, model)
        streamed = getattr(config.model, "streaming", False)
        weights = dtype.itemsize * present(model, 2 if streamed else None)
        walking = self._walking(config, model) if config.quantizes else 0.0
        return PROCESS + weights + max(walking, logits(config, model, dtype))

    def _walking(self, config: Config, model: PreTrainedModel) -> float:
        """Both streams' states, and the most of a stage: the sums of all lanes, or its work on their sum."""
        tokens, own = _windows(config)
        chosen = planned(config)
        widest = max(stage.linears[0].shape[1] for stage in chosen.stages)
        paired = tokens.ids.numel() + tokens.heldout.numel()
        dtype = _dtype(config, model)
        count = 2.0 * paired + own.numel()
        states: float = dtype.itemsize * count * (3 * hidden_size(model) + widest)
        moments, windows = stage_moments(config, chosen), (tokens.ids, tokens.heldout, own)
        memory = walk_memory(config, model, chosen, moments, windows, dtype)
        lanes = min(config.threads or torch.get_num_threads(), memory.load.batches)
        largest = 0.0
        for stage in chosen.stages:
            sums, columns = memory.sums(stage), stage.linears[0].shape[1]
            # The factor of H; W, its correction, V, and codes.
            work = columns**2 + 3.25 * sum(one.shape[0] for one in stage.linears) * columns
            largest = max(largest, lanes * sums, sums + work)
        return states + working(dtype).itemsize * largest


def _windows(config: Config) -> tuple[Tokens, Tensor]:
    """The windows that calibrate a run, and the ids of the method's own, of which there may be none."""
    tokens, *others = (calibration_tokens(config, name) for name in config.calibrations)
    return tokens, others[0].ids if others else tokens.ids[:0]


def _dtype(config: Config, model: PreTrainedModel) -> torch.dtype:
    """The precision that the weights will have."""
    chosen = getattr(config.model, "dtype", "auto")
    found = model.dtype if chosen == "auto" else getattr(torch, chosen)
    assert isinstance(found, torch.dtype)
    return found


def dry_run(configs: Sequence[Config], console: Console) -> None:
    """Lists every run of a sweep, its baselines first: where, whether it is done, what it costs."""
    listed: dict[str, Config] = {}
    for config in configs:
        if baseline := config.reference():
            listed.setdefault(baseline.run_id, baseline)
    for config in configs:
        listed.setdefault(config.run_id, config)
    on_card = any(config.device.startswith("cuda") for config in configs)
    titles = COLUMNS if on_card else ("GB", "time")
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title in ("run", "state", "bits/weight", "TFLOP", *titles):
        left = title in ("run", "state", "fits")
        table.add_column(title, justify="left" if left else "right")
    estimator, found = Estimator(), list[Estimate]()
    todo = 0
    for config in console.track(list(listed.values()), "counting"):
        state, said = state_of(config), ["–"] * (2 + len(titles))
        if config.force or not config.settled():
            todo += 1
            try:
                found.append(estimator(config))
            except WeightlessError:  # why has been said when it was checked
                state += ", not countable"
            else:
                said = found[-1].cells(on_card)
        table.add_row(Text(str(config.directory)), state, *said)  # brackets are no markup
    work, seconds = (sum(getattr(one, key) for one in found) for key in ("work", "seconds"))
    most = max((one.memory for one in found), default=0.0)
    sizes = ["", "", "", ""] if on_card else [f"{most / 1e9:.1f}"]
    totals = [f"{todo} of {len(listed)} to do", "", "", _teras(work), *sizes, duration(seconds)]
    table.add_row(*totals, *([""] if on_card else []), style="bold")
    console.out.print(table)
    console.say(
        "Nothing was started. Operations are counted (those of text that tasks generate are not). "
        "Memory and time are estimates: time is at the speed of matrix products here and now "
        f"({speed_of(configs[0]) / 1e9:.0f} GFLOP/s); runs have taken one to three times that."
    )
    if on_card:
        console.say(
            "GB are what tensors of the card hold at most, by calibration.hold (docs/scale.md)."
        )


def speed_of(config: Config) -> float:
    """The machine's speed on products as wide as the model, in its precision."""
    model = skeleton(config)
    return product_speed(config.device, config.threads, _width(model), _dtype(config, model))


def _width(model: PreTrainedModel) -> int:
    return max(512, min(hidden_size(model), 2048))


def state_of(config: Config) -> str:
    """Whether a run is done, to do, or was begun before."""
    if config.settled() and config.force:
        return "done, to be repeated"
    try:
        record = read_record(config.directory)
    except FileNotFoundError:
        return "to do, begun before" if config.directory.exists() else "to do"
    except RecordError:
        return "to do, damaged"
    if record.status == "failed":
        return "to do, failed before"
    return record.status if config.settled() else f"to do, {record.status} before"


def _teras(flops: float) -> str:
    return f"{flops / 1e12:.3g}"
