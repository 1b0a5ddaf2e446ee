"""What every linear and stage of a run gets, seen from the architecture alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.allocation import BudgetError, check_budget
from harness.export.base import Kind, Source
from harness.inputs.weight_files import first_of
from harness.numerics.statistics import Statistics
from harness.recipe import Recipe, stage_flops
from harness.settings.config import Config, ConfigError
from harness.settings.plugins import load_plugin, plugin_names
from harness.walk import cost
from harness.walk.architecture import Linear, Plan, Selected, Stage, plan
from harness.walk.live import Load, Memory
from harness.walk.residual import with_writers
from harness.walk.walk import Moments, StageInputs


def planned(config: Config, model: PreTrainedModel) -> Plan:
    """The stages of a run; ``model`` may be without weights.

    Raises:
        ValueError: see :func:`harness.walk.architecture.plan`.
    """
    chosen = plan(model, config.quantize.include, config.quantize.exclude, config.quantize.blocks)
    return with_writers(model, chosen) if config.qep.target == "residual" else chosen


def recipes(config: Config, stage: Stage) -> dict[str, Recipe]:
    """What is done to each linear of a stage."""
    return {one.name: config.recipe(one.name) for one in stage.linears}


def candidates(config: Config, name: str) -> dict[int, Recipe]:
    """The recipes among which a budget chooses, by bits; one where the bits of the linear are said."""
    said = config.axes.of(name).bits
    if isinstance(said, int):
        return {said: config.recipe(name)}
    return {bits: config.recipe(name, bits) for bits in said}


def writers(config: Config, stage: Stage) -> tuple[str, ...]:
    """The linears of a stage that are corrected for the residual stream."""
    return tuple(name for name in stage.writers if config.qep.corrects(name, "residual"))


def stage_moments(config: Config, chosen: Plan) -> list[Moments]:
    """What each stage has to accumulate."""
    return [needed(config, stage) for stage in chosen.stages]


def reads(config: Config, stage: Stage) -> frozenset[str]:
    """The statistics beyond H that the recipes of a stage read."""
    every = [next(iter(candidates(config, one.name).values())) for one in stage.linears]
    return frozenset[str]().union(*(one.needs for one in every))


def needed(config: Config, stage: Stage) -> Moments:
    """The statistics beyond H that correcting and quantising these linears takes."""
    names, wanted = [one.name for one in stage.linears], reads(config, stage)
    from_reference = config.qep.statistics == "reference" and config.own_calibration is None
    residual = bool(writers(config, stage))
    corrects = residual or any(config.qep.corrects(name) for name in names)
    return Moments(
        cross=corrects or from_reference or "cross" in wanted,
        gap=from_reference,
        magnitude="magnitude" in wanted,
        residual=residual,
    )


def trial_moments(config: Config, stage: Stage) -> Moments:
    """The statistics beyond H that trying bits on these linears takes: nothing is corrected there."""
    wanted = reads(config, stage)
    return Moments(cross="cross" in wanted, magnitude="magnitude" in wanted)


def method_statistics(config: Config, stage: StageInputs) -> Statistics:
    """What the base method sees: moments of its own tokens, or of one of the two streams."""
    if stage.own is not None:
        return stage.own
    found = stage.statistics
    return found if config.qep.statistics == "quantized" else found.of_reference()


def walk_memory(
    config: Config,
    model: PreTrainedModel,
    chosen: Plan,
    moments: Sequence[Moments],
    windows: Sequence[Tensor],
    dtype: torch.dtype,
) -> Memory:
    """What walking takes of a device.

    Args:
        config: of the run.
        model: it may be without weights.
        chosen: what is quantised.
        moments: what each stage sums.
        windows: token ids ``[windows, length]`` that calibrate, that are held out, and the method's own.
        dtype: the precision of the weights.
    """
    calibration, heldout, own = map(len, windows)
    length = windows[0].shape[1]
    batch = min(calibration, max(1, config.batch_tokens // length))
    return Memory(
        model,
        chosen,
        moments,
        Load(calibration, heldout, own, length, batch),
        dtype,
        getattr(config.model, "streaming", False),
    )


def quantising_flops(
    config: Config,
    model: PreTrainedModel,
    chosen: Plan,
    calibration: Sequence[int],
    heldout: int = 0,
    own: Sequence[int] = (0, 0),
) -> dict[str, float]:
    """The floating-point operations of walking and quantising by phase, from shapes alone.

    ``calibration`` and ``own`` (tokens of the method's own) are (windows, length), ``heldout`` the
    number of held-out tokens.
    """
    windows, length = calibration
    tokens, moments = windows * length, stage_moments(config, chosen)
    aimed = [writers(config, stage) for stage in chosen.stages]
    shapes = {one.name: one.shape for one in chosen.linears}

    def rounding(stage: Stage, trial: bool) -> float:
        every = {one.name: candidates(config, one.name) for one in stage.linears}
        if trial:
            alone = [(name, one) for name, some in every.items() for one in some.values()]
            return sum(stage_flops({name: one}, shapes) for name, one in alone)
        return stage_flops(
            {name: next(iter(some.values())) for name, some in every.items()}, shapes
        )

    counted = {
        "walk": cost.calibration_flops(model, chosen, moments, tokens, heldout, length)
        + cost.own_flops(model, chosen, own),
        "correct": cost.propagation_flops(chosen, config.qep, aimed),
        "quantise": sum(rounding(stage, trial=False) for stage in chosen.stages),
        "errors": cost.errors_flops(chosen, config.qep, bool(heldout), aimed),
    }
    if config.budgeted:
        plain = [trial_moments(config, stage) for stage in chosen.stages]
        counted["allocate"] = cost.calibration_flops(
            model, chosen, plain, tokens, 0, length
        ) + sum(rounding(stage, trial=True) for stage in chosen.stages)
    return counted


def forward_flops(
    config: Config,
    model: PreTrainedModel,
    calibration: Sequence[int],
    heldout: int = 0,
    own: Sequence[int] = (0, 0),
) -> float:
    """Of :func:`quantising_flops` those of the model's own forwards, if none runs twice."""
    windows, length = calibration
    walks = [windows * length + heldout, *([windows * length] if config.budgeted else [])]
    paired = 2 * sum(cost.forward_flops(model, tokens, length) for tokens in walks)
    return paired + cost.forward_flops(model, own[0] * own[1], own[1])


def check_codes(config: Config) -> None:
    """Refuses to quantise a checkpoint of codes.

    Raises:
        ConfigError: it is one; one line.
    """
    if by := getattr(config.model, "codes", lambda: None)():
        raise ConfigError(
            f"model.path={config.model.path!r}: quantised already ({by}): method=none evaluates it; to "
            "quantise, the checkpoint that it was made from is needed"
        )


def check_axes(config: Config, model: PreTrainedModel, chosen: Plan) -> None:
    """Refuses axes that do not fit the linears of a model.

    Raises:
        ConfigError: an override that no linear has, parts that do not fit, a group size that does not
            divide a linear's input columns, or a budget that can't be kept; one line.
    """
    linears = chosen.linears
    if odd := config.axes.unmatched([one.name for one in linears]):
        raise ConfigError(
            f"overrides[{odd[0]}]: no linear that is quantised has such a name; one is {linears[0].name}"
        )
    try:
        every = {one.name: candidates(config, one.name) for one in linears}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    first = {name: next(iter(some.values())) for name, some in every.items()}
    check_groups(
        config, model, linears, {name: one.spec.group_size for name, one in first.items()}
    )
    if config.axes.budget is not None:
        storage = {
            one.name: [made.storage(*one.shape).total for made in every[one.name].values()]
            for one in linears
        }
        try:
            check_budget(storage, weights(linears), config.axes.budget)
        except BudgetError as error:
            raise ConfigError(str(error)) from error


def check_save(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: Plan
) -> None:
    """Refuses a kind of checkpoint that can't hold what the run makes of these linears.

    Raises:
        ConfigError: one line with the reason and the kinds that can.
    """
    every = {one.name: list(candidates(config, one.name).values()) for one in chosen.linears}
    lines = {one.name: one for one in chosen.linears}

    def refusal(kind: Kind) -> str | None:
        if any(one.mixture for one in lines.values()):
            return "the experts of a mixture, which are stored together"
        fits, reasons = {}, {}
        for name, some in every.items():
            problems = [kind.problem(lines[name], one) for one in some]
            fits[name] = [one for one, bad in zip(some, problems, strict=True) if bad is None]
            if found := next(filter(None, problems), None):
                reasons[name] = found
        kept = {name: some for name, some in fits.items() if some}
        if reasons and config.save_misfits == "refuse":
            way = " (save_misfits=dense stores such dense)" if kept else ""
            return f"{first_of(list(reasons))}: {next(iter(reasons.values()))}{way}"
        if not kept:
            return f"holds none of the linears as codes ({next(iter(reasons.values()))})"
        for shift in range(max(map(len, kept.values()))):  # a budget may choose any mixture
            tried = {
                name: some[(place + shift) % len(some)]
                for place, (name, some) in enumerate(kept.items())
            }
            if conflict := kind.conflict(Source(model, tokenizer, tried)):
                return conflict
        return None

    for name, kind in config.kinds().items():
        if not kind.codes or (reason := refusal(kind)) is None:
            continue
        kinds = {one: load_plugin("export", one)() for one in plugin_names("export")}
        able = [one for one, other in kinds.items() if not other.codes or refusal(other) is None]
        raise ConfigError(f"save={name}: {reason}; these can: {', '.join(able)}")


def weights(linears: Iterable[Linear]) -> int:
    """How many weights these linears have together."""
    return sum(math.prod(one.shape) for one in linears)


def check_groups(
    config: Config, model: PreTrainedModel, linears: Iterable[Linear], sizes: dict[str, int | None]
) -> None:
    """Refuses a group size that does not divide a linear's input columns."""
    columns = {one.name: one.shape[1] for one in linears}
    odd = [name for name, size in sizes.items() if size and columns[name] % size]
    if not odd:
        return
    size = sizes[odd[0]]
    assert size is not None
    alike = [name for name in odd if sizes[name] == size]
    more = f" (and of {len(alike) - 1} more)" if len(alike) > 1 else ""
    common = math.gcd(*(columns[name] for name, one in sizes.items() if one == size))
    near = max(divisor for divisor in range(1, size + 1) if common % divisor == 0)
    chosen = config.quantize
    selected = Selected(model, chosen.include, chosen.exclude, chosen.blocks)
    raise ConfigError(
        f"group_size={size}: does not divide the {columns[odd[0]]} input columns of {odd[0]}{more}"
        f"; group_size={near} divides them all{selected.without(alike)}"
    )
