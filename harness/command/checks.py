"""What can be known to be wrong before anything starts: plugins, files, devices, folders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.evaluate.base import check_all
from harness.inputs.contents import Key
from harness.inputs.names import name_problem
from harness.records.record import NewerError, refuse_newer
from harness.settings.config import Config
from harness.trackers.wandb import SWEEP

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.inputs.models import Model
    from harness.walk.architecture import Plan

THREADS = 8  # a core: runs of larger machines can be repeated here, and nothing drowns


def checks(configs: Sequence[Config], elsewhere: bool = False) -> Iterator[str]:
    """What the plugins of all jobs know to be wrong, and what the machine lacks.

    Args:
        configs: of all jobs.
        elsewhere: other machines do them, which may have other devices; a dry run is done here.
    """
    if any(config.device_profile for config in configs):
        from harness.command.sketch import sketch_problems

        yield from sketch_problems(configs)
        return
    seen: set[str] = set()
    saves: dict[str, tuple[str, ...]] = {}
    for config in configs:
        if config.dry_run or not elsewhere:
            yield from device_problems(config.device)
            yield from thread_problems(config.threads)
        yield from folder_problems(config.folder, make=not config.dry_run)
        if config.noise.repeats > 1 and SWEEP in os.environ:
            yield (
                f"noise.repeats={config.noise.repeats}: the process of a W&B agent has one W&B "
                "run; sweep over noise.seed instead (sweeps/noise.yaml)"
            )
        yield from name_problems(config)
        yield from record_problems(config)
        yield from save_problems(config, saves)
        if is_done(config):  # nothing has changed since its inputs were checked and read
            continue
        parts = [config.model, *config.evaluators.values()]
        parts += config.calibrations.values()
        new = {repr(part): part for part in parts if repr(part) not in seen}
        seen |= new.keys()
        try:
            check_all(part.check for part in new.values())
        except ValueError as error:
            yield str(error)
        except OSError as error:  # what the system does not even look for, or lets nobody see
            yield f"{error.filename}: {error.strerror}"
        yield from content_problems(config)
        yield from model_problems(config)
        yield from window_problems(config, seen)


def is_done(config: Config) -> bool:
    """Whether a run has nothing left to do; one whose inputs are missing is not done."""
    try:
        return not config.force and config.settled() is not None
    except (ValueError, OSError):
        return False


def record_problems(config: Config) -> Iterator[str]:
    """Records of a later version in the place of this run's, or of its full-precision run's."""
    try:
        for one in (config, config.reference()):
            if one is not None and one.alike():  # its name without a look at its inputs
                refuse_newer(one.directory)
    except NewerError as error:
        yield f"{error} and leaves it alone; set=NAME has folders of its own"
    except (ValueError, OSError):  # its inputs can't be had, which is said elsewhere
        return


def save_problems(config: Config, saves: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Jobs that are one run and save different checkpoints; ``saves`` are those of the jobs before."""
    before = saves.setdefault(config.stem, config.saves)  # no look at what its inputs hold
    if before != config.saves:
        both = ",".join(dict.fromkeys((*before, *config.saves)))
        yield f"save={','.join(config.saves) or 'none'}: {config.stem} is one run; save=[{both}] saves all"


def content_problems(config: Config) -> Iterator[str]:
    """Why it can't be told what the inputs hold."""
    try:
        config.contents  # noqa: B018  kept, for the run's name
    except ValueError as error:
        yield str(error)


def name_problems(config: Config) -> Iterator[str]:
    """Names that can't be part of a metric's key, and what two parts of a run would record under one."""
    seen = dict.fromkeys(("model", "calibration", *config.calibrations), "the run itself")
    for part, evaluator in config.evaluators.items():
        for name in dict.fromkeys(evaluator.datasets()):
            if problem := name_problem(f"eval: the name in {part}", name):
                yield problem
            if name in seen:
                yield f"eval: {name!r} of {part} is a name that {seen[name]} has as well; rename one"
            seen[name] = part


def window_problems(config: Config, seen: set[str]) -> Iterator[str]:
    """What is wrong with the token windows, or with the model for them, seen without its weights.

    Args:
        config: of a job.
        seen: the windows of jobs before it, which fit.
    """
    from harness.inputs.fit import check_fit
    from harness.settings.reading import token_windows

    key = repr(
        (config.model, config.calibrations, config.seed, config.evaluators, config.contents)
    )
    if key in seen:
        return
    try:
        windows = token_windows(config)
        check_fit(windows, skeleton(config))
        if config.budgeted and len(windows["calibration"].ids) < 2:
            yield "bits=auto: needs two calibration windows at least, for H and for losses"
    except ValueError as error:
        yield str(error)
    seen.add(key)


def model_problems(config: Config) -> Iterator[str]:
    """What is wrong with the checkpoint, its architecture and the selection, seen without weights."""
    from harness.evaluate.head import tapped
    from harness.planning import check_axes, check_codes, check_save
    from harness.settings.reading import tokenizer_of
    from harness.walk.probe import check_logits, observe
    from harness.walk.weightless import WeightlessError

    try:
        model = skeleton(config)
        tokenizer = tokenizer_of(config)
        if config.evaluators:
            with tapped(model):
                pass
        observe(model)
        check_logits(model)
        if config.quantizes:
            check_codes(config)
            check_axes(config, model, planned(config))
            check_save(config, model, tokenizer, planned(config))
    except WeightlessError as error:
        warnings.warn(
            f"{error}; what can't be quantised of it shows when it has loaded", stacklevel=1
        )
    except ValueError as error:
        yield str(error)


def thread_problems(threads: int | None) -> Iterator[str]:
    """More threads than a figure made on another machine may ask of this one."""
    most = THREADS * (os.cpu_count() or 1)
    if threads is not None and threads > most:
        yield f"threads={threads}: at most {most} on this machine, {THREADS} a core; null takes all cores"


def device_problems(device: str) -> Iterator[str]:
    """What is wrong with the name of a device on this machine."""
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError:
        yield f"device={device!r}: no such device; try cpu, cuda or cuda:0"
        return
    if kind.type == "cpu":
        return
    module = getattr(torch, kind.type, None)
    count = module.device_count() if module is not None and module.is_available() else 0
    if (kind.index or 0) >= count:
        yield f"device={device!r}: this machine has {count} {kind.type} devices; device=cpu works everywhere"


def folder_problems(folder: Path, make: bool) -> Iterator[str]:
    """Why records can't be written below ``folder``; with ``make`` the folder exists afterwards."""
    said = f"results={str(folder.parent)!r}"
    try:
        nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not nearest.is_dir():
            yield f"{said}: {nearest} is no directory"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            yield f"{said}: {nearest} is not writable"
        elif make:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield f"{said}: {error.strerror} ({error.filename})"


def skeleton(config: Config) -> PreTrainedModel:
    """The architecture of a run's model without its weights, kept for the next job of a sweep.

    Of a run that is estimated for a card that is not there nothing but the configuration is looked at.
    """
    if config.device_profile is not None:
        return _sketch(config.model)
    return _skeleton(config.model, config.held("model"))


@lru_cache(maxsize=4)
def _skeleton(model: Model, held: tuple[tuple[Key, str], ...]) -> PreTrainedModel:
    """A model without its weights, whose contents are ``held``."""
    return model.skeleton()


@lru_cache(maxsize=4)
def _sketch(model: Model) -> PreTrainedModel:
    """A model as its configuration describes it."""
    return model.sketch()


def planned(config: Config) -> Plan:
    """What would be quantised in a run, seen on the model's skeleton."""
    key = (skeleton(config), config.quantize, config.qep.target)
    if key not in _plans:
        from harness.planning import planned as of_model

        _plans[key] = of_model(config, key[0])
    return _plans[key]


_plans: dict[Any, Plan] = {}  # of the jobs of this sweep
