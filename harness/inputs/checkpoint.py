"""The files of a checkpoint become the model that they are of, and nothing else.

transformers loads what fits and goes on: what is missing it draws at random, what has no place it drops,
and integers it takes for numbers. Here all that is refused in one line. Most of it shows without a
weight being read, on the meta device: there the same loader does all it does, renaming and merging of
tensors too, with shapes alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
import transformers  # its classes load on first use: a run that is skipped needs none
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from harness.inputs import codes
from harness.inputs.assets import near
from harness.inputs.weight_files import (
    FLOATS,
    WEIGHTS,
    CheckpointError,
    first_of,
    headers,
    weight_files,
)
from harness.numerics.finite import NonFiniteError, check_finite
from harness.numerics.precision import arithmetic
from harness.walk.experts import unfused

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LONGEST = 300  # characters of what a library says
ADAPTER = "an adapter (adapter_config.json), no model: peft's merge_and_unload merges it into one"


def load(location: str, dtype: torch.dtype | str, **options: Any) -> PreTrainedModel:
    """The model of a checkpoint on the CPU, every weight of it from the file and finite.

    A mixture's experts are linears, see :mod:`harness.walk.experts`.

    Args:
        location: a directory, or a name on the hub.
        dtype: the precision of all weights; "auto" is the checkpoint's own.
        options: ``revision`` and ``trust_remote_code``, for the hub and for code that comes along.

    Raises:
        CheckpointError: it is not what is asked for.
        NonFiniteError: a weight is not finite.
    """
    with one_line():
        config = _config(location, **options)
        model = _model(location, dtype, config, **options)
    for name, one in model.named_parameters():
        if one.numel():
            check_finite(f"{name} in {str(one.dtype).removeprefix('torch.')}", one)
    return unfused(model)


def skeleton(location: str, dtype: torch.dtype | str, **options: Any) -> PreTrainedModel:
    """The model on the meta device, after all that can be known of its files was found in order.

    The files of a name on the hub are looked at where they are in the local cache; else they are when
    they are loaded.

    Raises:
        CheckpointError: it is not what is asked for.
    """
    with one_line():
        config = _config(location, **options)
        read = codes.reading(location, config, dtype)
        name = getattr(config, "transformers_weights", None) or WEIGHTS
        revision = options.get("revision")
        files = None if read.gguf else weight_files(location, revision, name)
        stored = headers(files or [])
        if read.by or files is None:
            return unfused(_from_configuration(codes.plain(config), dtype, **options))
        model = _model(location, dtype, config, device_map="meta", **options)
        _refuse_integers(model, stored)
        return unfused(model)


def codes_of(location: str, dtype: torch.dtype | str, **options: Any) -> str | None:
    """The format in which a checkpoint stores codes; None where its weights are numbers.

    Raises:
        CheckpointError: it is not what is asked for.
    """
    with one_line():
        return codes.reading(location, _config(location, **options), dtype).by


def sketch(location: str, dtype: torch.dtype | str, **options: Any) -> PreTrainedModel:
    """The model on the meta device that ``config.json`` in a directory describes.

    Raises:
        CheckpointError: it describes none that can be walked through, or one whose weights are codes.
    """
    with one_line():
        config = _config(location, **options)
        if by := codes.reading(location, config, dtype).by:
            raise CheckpointError(f"quantised already ({by})")
        return unfused(_from_configuration(config, dtype, **options))


@contextmanager
def one_line(part: str = "") -> Iterator[None]:
    """Says in one line whatever the loader, or code that comes with a checkpoint, fails with."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # code of others: it may be any
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{part or 'it'} brings code of its own; model.trust_remote_code=true runs it"
            ) from error
        said = shorten(str(error) or "no reason given", LONGEST, placeholder=" …")
        where = f"{part}: " if part else ""
        raise CheckpointError(f"{where}{said} ({type(error).__name__})") from error


@contextmanager
def named(what: str) -> Iterator[None]:
    """Says which checkpoint an error is about."""
    try:
        yield
    except (CheckpointError, NonFiniteError) as error:
        raise type(error)(f"{what}: {error}") from error.__cause__


@contextmanager
def quiet() -> Iterator[None]:
    """Switches the bars of transformers off; a run has its own progress display."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def refuse_misfits(model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuses what the loader's report names: missing, unexpected, misshapen tensors.

    Those that transformers declares ignorable, or has tied to others, are not in the report.
    """
    order = {name: index for index, name in enumerate(model.state_dict())}
    missing = sorted(report["missing_keys"], key=lambda name: order.get(name, -1))
    shapes = sorted(
        f"{name} {tuple(found)} instead of {tuple(wanted)}"
        for name, found, wanted in report["mismatched_keys"]
    )
    kinds = {
        "missing": missing,
        "without a place": sorted(report["unexpected_keys"]),
        "misshapen": shapes,
        "failed": [str(one).splitlines()[0] for one in report["error_msgs"]],
    }
    if said := ", ".join(f"{kind} {first_of(names)}" for kind, names in kinds.items() if names):
        raise CheckpointError(f"its tensors are not those of a {type(model).__name__}: {said}")


def _config(location: str, **options: Any) -> PreTrainedConfig:
    """The configuration, of a decoder in full precision."""
    revision = options.get("revision")
    if find_adapter_config_file(location, revision=revision) is not None:
        raise CheckpointError(ADAPTER)
    settings, _ = transformers.PreTrainedConfig.get_config_dict(location, revision=revision)
    kind = settings.get("model_type")
    if kind and kind not in transformers.CONFIG_MAPPING and not settings.get("auto_map"):
        hint = near(kind, list(transformers.CONFIG_MAPPING))
        raise CheckpointError(f"transformers knows no model_type={kind!r}{hint}")
    config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(location, **options)
    if config.is_encoder_decoder:
        raise CheckpointError(f"{kind} is an encoder with a decoder; a decoder alone is needed")
    # Families that can be either have both; in older versions of transformers all of them did.
    either = all(
        hasattr(config, key) and not hasattr(transformers.PreTrainedConfig(), key)
        for key in ("is_decoder", "add_cross_attention")
    )
    if either and not config.is_decoder:
        raise CheckpointError(f"{kind} with is_decoder=false is an encoder; a decoder is needed")
    return config


def _auto_class(config: PreTrainedConfig) -> Any:
    """What transformers builds the model with: text alone, or a decoder that also takes images."""
    own = getattr(config, "auto_map", None) or {}
    for auto, known in (
        (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        (
            transformers.AutoModelForImageTextToText,
            transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        ),
    ):
        if type(config) in known or auto.__name__ in own:
            return auto
    raise CheckpointError(f"{config.model_type} is no language model of transformers")


def _from_configuration(
    config: PreTrainedConfig, dtype: torch.dtype | str, **options: Any
) -> PreTrainedModel:
    """The model on the meta device that a configuration describes, whatever its files hold."""
    auto, trusted = _auto_class(config), options.get("trust_remote_code", False)
    chosen: dict[str, Any] = {} if dtype == "auto" else {"dtype": dtype}
    if trusted and auto.__name__ in (getattr(config, "auto_map", None) or {}):
        chosen["code_revision"] = options.get("revision")
    with torch.device("meta"), arithmetic(dtype):
        return _checked(auto.from_config(config, trust_remote_code=trusted, **chosen))


def _model(
    location: str, dtype: torch.dtype | str, config: PreTrainedConfig, **options: Any
) -> PreTrainedModel:
    """The model, each of its tensors from the files; with ``device_map="meta"`` no value is read."""
    auto, read = _auto_class(config), codes.reading(location, config, dtype)
    chosen = {"dtype": dtype, **read.options, **options}
    heard = codes.unheard() if read.by else nullcontext()
    with quiet(), arithmetic(dtype), _conversions(), heard:
        model, report = auto.from_pretrained(
            location,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
            **chosen,
        )
        refuse_misfits(model, report)
        if read.by and not read.gguf:
            model, report = codes.dense(model, read, config)
            refuse_misfits(model, report)
    return _checked(model)


@contextmanager
def _conversions() -> Iterator[None]:
    """Names the tensors that can't be put together to the model's; only the loader's report does."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    try:
        yield
    except RuntimeError as error:
        names = re.findall(r"^(.+?) +\| \S*CONVERSION", "\n".join(heard), re.MULTILINE)
        if not names:
            raise
        raise CheckpointError(f"its tensors do not make up {first_of(names)}") from error
    finally:
        logger.removeHandler(handler)


def _checked(model: Any) -> PreTrainedModel:
    assert isinstance(model, transformers.PreTrainedModel)
    return model


def _refuse_integers(model: PreTrainedModel, stored: Mapping[str, tuple[str, list[int]]]) -> None:
    """Refuses weights that are stored as codes of a few bits: without these the model is not whole."""
    codes = {name: kind for name, (kind, _) in stored.items() if kind not in FLOATS}
    if not codes:
        return
    floats = {
        name: torch.empty(shape, dtype=FLOATS[kind], device="meta")
        for name, (kind, shape) in stored.items()
        if kind in FLOATS
    }
    with quiet():
        loaded: Any = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=floats,
            device_map="meta",
            output_loading_info=True,
        )
    lost = [
        name
        for name, one in model.state_dict().items()
        if one.is_floating_point() and name in loaded[1]["missing_keys"]
    ]
    if lost:
        kinds = ", ".join(sorted(set(codes.values())))
        raise CheckpointError(f"{first_of(lost)} stored as {kinds}: quantised already")
