"""What a checkpoint is loaded from and as: a folder or a name on the hub, a precision, a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import transformers
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from harness.inputs import assets, checkpoint, hub
from harness.numerics.device import Courier
from harness.walk.probe import observe
from harness.walk.streaming import stream_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# auto is the checkpoint's own. float64, see harness/numerics/precision.py, takes about twice as long
# as float32 on a CPU (on many GPUs far longer).
Precision = Literal["auto", "float64", "float32", "float16", "bfloat16"]
CONFIG = "config.json"


def load(
    path: str,
    dtype: torch.dtype | str,
    device: str | torch.device,
    streaming: bool,
    **options: Any,
) -> PreTrainedModel:
    """The model in evaluation mode, without gradients; where it streams, its blocks stay mapped.

    Raises:
        CheckpointError: the files are not a whole model.
        NonFiniteError: a weight is not finite.
        UnsupportedModelError: it is no decoder that can be walked through.
    """
    model = checkpoint.load(path, dtype, **options)
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    if streaming:
        stream_blocks(model, Courier(torch.device(device)), assets.cache_directory() / "streamed")
    else:
        model.to(device)  # type: ignore[arg-type]
    observe(model)
    return model


def tokenizer(path: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint in ``path``.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    with checkpoint.quiet(), checkpoint.one_line("its tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(path, **options)


def check_precision(dtype: str) -> None:
    """Raises ValueError for what is no :data:`Precision`."""
    if dtype not in get_args(Precision):
        known = list(get_args(Precision))
        hint = assets.near(dtype, known)
        raise ValueError(f"dtype={dtype!r}: allowed are {', '.join(known)}{hint}")


def torch_dtype(precision: Precision) -> torch.dtype | str:
    """What torch calls a precision; ``auto`` stays."""
    return precision if precision == "auto" else getattr(torch, precision)


def check_directory(directory: Path) -> None:
    """Raises ValueError for a directory that holds no checkpoint, or an adapter of one."""
    said = f"model.path={str(directory)!r}"
    if (directory / "adapter_config.json").is_file():
        raise ValueError(f"{said}: {checkpoint.ADAPTER}")
    if not (directory / CONFIG).is_file():
        raise ValueError(f"{said}: the directory has no config.json")


def hub_commit(path: str, revision: str | None) -> str:
    """The commit of a model on the hub; asks for it unless its files are in the local cache.

    Raises:
        ValueError: the hub has no such model or revision, does not let us in, or can't be reached.
    """
    said = f"model.path={path!r}"
    try:
        return hub.commit(path, CONFIG, revision)
    except GatedRepoError:
        raise ValueError(
            f"{said}: access is restricted; accept its terms on huggingface.co/{path} and log in "
            "with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"{said}: no revision {revision!r} on the hub") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ValueError(f"{said}: neither a directory nor a model on the hub") from None
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"{said}: no such directory, and the hub can't be reached "
            f"({str(error).splitlines()[0]}); give a local directory or use model=smollm2_135m"
        ) from None
