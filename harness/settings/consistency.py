"""What the options of a run can't be, alone or together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.inputs.names import name_problem
from harness.settings.plugins import load_plugin

if TYPE_CHECKING:
    from harness.settings.config import Config

RESERVED = ("wandb",)  # the folder in results where Weights & Biases leaves its own runs


def problems(config: Config) -> list[str]:
    """What is wrong with the options of a run, one phrase each, all at once."""
    found = [
        *_names(config),
        *(config.axes.problems(config.method) if config.quantizes else []),
    ]
    if not 0 <= config.seed < 2**32:
        found.append(f"seed={config.seed}: allowed are whole numbers from 0 to 2^32 − 1")
    if config.threads is not None and config.threads < 1:
        found.append(f"threads={config.threads}: must be at least 1, or null for all cores")
    if config.workers < 1:
        found.append(f"workers={config.workers}: must be at least 1")
    if config.batch_tokens < 1:
        found.append(f"batch_tokens={config.batch_tokens}: must be positive")
    if config.qep.automatic and config.quantizes and not getattr(config.calibration, "holdout", 0):
        found.append("qep.alpha=auto needs held-out windows: set calibration.holdout=4, say")
    if config.device_profile is not None:
        found += _profile(config, config.device_profile.name)
    found += _saves(config)
    if held := getattr(config.own_calibration, "holdout", 0):
        found.append(
            f"calibration.{config.method_name}.holdout={held}: nothing is held out of a set of "
            "the method's own; calibration.holdout holds windows out"
        )
    compares = any(getattr(one, "divergence", False) for one in config.evaluators.values())
    if compares and not config.baseline and config.quantizes:
        found.append("baseline=false: eval.divergence=true compares with it; set it false too")
    return found


def _names(config: Config) -> Iterator[str]:
    """Names that can't be part of a path below ``results``."""
    if not config.results:
        yield "results='': a folder is needed"
    if config.set in RESERVED:
        yield f"set={config.set!r}: this folder in results has another use"
    named = [("set", config.set), ("model.name", config.model.name)]
    yield from filter(None, (name_problem(*one) for one in named))


def _profile(config: Config, name: str) -> Iterator[str]:
    """What a card that is not there can't do."""
    if not config.dry_run:
        yield f"device_profile={name}: estimates a run, and is for dry_run=true"
    if not config.device.startswith("cuda"):
        yield f"device_profile={name}: device={config.device} is none; say device=cuda"
    if not config.quantizes:
        yield f"device_profile={name}: method={config.method_name} quantises nothing to estimate"


def _saves(config: Config) -> Iterator[str]:
    """Kinds of checkpoints that there are not, or that hold only what is quantised."""
    for name in config.saves:
        try:
            kind = load_plugin("export", name)
        except ValueError as error:
            yield str(error)
            continue
        if not config.quantizes and kind.codes:  # type: ignore[attr-defined]
            yield f"save={name}: method={config.method_name} quantises nothing; save=dense holds it"
