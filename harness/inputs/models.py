"""A checkpoint (pinned asset, local directory, hub name) becomes a model, a tokenizer, a hash."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from harness.inputs import assets, checkpoint, hub, loading
from harness.inputs.contents import Contents, digest
from harness.inputs.conversion import CONVERSION, converted
from harness.inputs.files import checkpoint_hash
from harness.inputs.loading import CONFIG, Precision
from harness.inputs.names import cleaned
from harness.inputs.stored import Codes, stored_codes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHAPES = Path(__file__).parent / "shapes"  # of models on the hub, by their names there
WITHOUT_INFLUENCE = {"identity": False}  # of an option that no figure depends on


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode; ``content_hash`` changes when weights or their precision do.

    ``codes`` says what its checkpoint stores as codes; None where all weights are numbers.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    content_hash: str
    codes: Codes | None = None


class Model(Hashable, Protocol):
    """Where a checkpoint comes from; a frozen dataclass named by ``_target_`` in conf/model."""

    @property
    def name(self) -> str:
        """What runs and tables call it."""
        ...

    def check(self) -> None:
        """Raises ValueError, in one line, if the checkpoint can't be had; loads nothing."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone, without the weights."""
        ...

    def skeleton(self) -> PreTrainedModel:
        """The model without its weights, on the meta device.

        Raises ValueError, in one line, for whatever is known of a checkpoint without reading them.
        """
        ...

    def sketch(self) -> PreTrainedModel:
        """The model on the meta device by its configuration alone, with no look at weights or a network."""
        ...

    def load(self, device: str | torch.device = "cpu") -> LoadedModel:
        """The checkpoint on ``device``."""
        ...


@dataclass(frozen=True)
class AssetModel:
    """A GGUF file of the asset manifest, dequantised: a plain model of the given precision.

    "Full precision" then means the checkpoint as its file has it, already rounded once.

    Args:
        name: what runs and tables call it.
        asset: its name in the manifest.
        dtype: of the weights and the forwards; see :data:`Precision`.
        streaming: see :mod:`harness.walk.streaming`.
    """

    name: str
    asset: str
    dtype: Precision = "float32"
    streaming: bool = field(default=False, metadata=WITHOUT_INFLUENCE)

    def __post_init__(self) -> None:
        loading.check_precision(self.dtype)

    def check(self) -> None:
        """Raises ValueError if the manifest has no such asset."""
        assets.find(self.asset)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Fetches and converts the file on the first call."""
        with checkpoint.named(self._said):
            return loading.tokenizer(self._location)

    def skeleton(self) -> PreTrainedModel:
        """Fetches and converts the file on the first call."""
        with checkpoint.named(self._said):
            return checkpoint.skeleton(self._location, loading.torch_dtype(self.dtype))

    def sketch(self) -> PreTrainedModel:
        """As :meth:`skeleton`: the file is in the cache, or small."""
        return self.skeleton()

    def origin(self) -> dict[str, str]:
        """For a model card: the licence, as the manifest has it."""
        return {"license": assets.find(self.asset).licence.lower()}

    @property
    def _location(self) -> str:
        return str(converted(assets.find(self.asset)))

    @property
    def _said(self) -> str:
        return f"model.asset={self.asset!r}"

    def load(self, device: str | torch.device = "cpu") -> LoadedModel:
        """Fetches and converts the file on the first call; later ones take under a second."""
        self.check()
        asset = assets.find(self.asset)
        with checkpoint.named(self._said):
            model = loading.load(
                self._location, loading.torch_dtype(self.dtype), device, self.streaming
            )
        return LoadedModel(
            model, self.tokenizer(), digest(asset.sha256, CONVERSION, str(model.dtype))
        )


@dataclass(frozen=True)
class HubModel:
    """A checkpoint by hub name or local directory, of safetensors; locally one GGUF file will do too.

    Args:
        path: ``owner/name`` on the hub, or a directory.
        name: what runs and tables call it; the last part of ``path`` if empty, cleaned.
        revision: branch, tag or commit on the hub.
        dtype: of the weights and the forwards; see :data:`Precision`.
        trust_remote_code: run the model code that comes with the checkpoint.
        streaming: see :mod:`harness.walk.streaming`.
    """

    path: str
    name: str = ""
    revision: str | None = None
    dtype: Precision = "auto"
    trust_remote_code: bool = False
    streaming: bool = field(default=False, metadata=WITHOUT_INFLUENCE)

    def __post_init__(self) -> None:
        loading.check_precision(self.dtype)
        if not self.path:
            raise ValueError("path is empty: a hub name (owner/name) or a directory is needed")
        if not self.name:
            name = cleaned(Path(self.path).expanduser().resolve().name)
            object.__setattr__(self, "name", name)

    def check(self) -> None:
        """Raises ValueError for a directory without a checkpoint or a name unknown to the hub."""
        if self._directory is None:
            loading.hub_commit(self.path, self.revision)
        else:
            loading.check_directory(self._directory)

    def contents(self) -> Contents:
        """A hash of the directory's files, or the commit on the hub: that in the local cache, if any."""
        return {"path": self._content}

    def _content(self) -> str:
        if self._directory is None:
            return f"{self.path}@{loading.hub_commit(self.path, self.revision)}"
        return checkpoint_hash(self._directory, self.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer from the directory or the hub."""
        with checkpoint.named(self._said):
            return loading.tokenizer(self._location, **self._options)

    def skeleton(self) -> PreTrainedModel:
        """From the configuration and the headers of the weights in the directory or on the hub."""
        with checkpoint.named(self._said):
            return checkpoint.skeleton(
                self._location, loading.torch_dtype(self.dtype), **self._options
            )

    def codes(self) -> str | None:
        """The format in which the checkpoint stores codes; None where its weights are numbers."""
        with checkpoint.named(self._said):
            return checkpoint.codes_of(
                self._location, loading.torch_dtype(self.dtype), **self._options
            )

    def sketch(self) -> PreTrainedModel:
        """From ``config.json`` in the directory, among :data:`SHAPES`, or in the hub's local cache.

        Raises:
            ValueError: it is in none of these; one line.
        """
        location = self._directory or SHAPES / self.path
        if not (location / CONFIG).is_file():
            cached = hub.cached_file(self.path, CONFIG, self.revision)
            if self._directory is not None or cached is None:
                known = [
                    str(one.parent.relative_to(SHAPES)) for one in SHAPES.glob(f"*/*/{CONFIG}")
                ]
                raise ValueError(
                    f"{self._said}: no {CONFIG} at hand{assets.near(self.path, known)}; a directory "
                    f"with that file alone is enough, and of the hub's names {', '.join(sorted(known))}"
                )
            location = cached.parent
        with checkpoint.named(self._said):
            code = {"trust_remote_code": self.trust_remote_code}
            return checkpoint.sketch(str(location), loading.torch_dtype(self.dtype), **code)

    def origin(self) -> dict[str, str]:
        """For a model card: the name on the hub, and the licence that a directory's own card names."""
        if self._directory is None:
            return {"base_model": self.path}
        readme = self._directory / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        front = re.match(r"---\n.*?^license: *(\S+) *$.*?\n---", text, re.MULTILINE | re.DOTALL)
        return {"license": front[1]} if front else {}

    @property
    def _said(self) -> str:
        return f"model.path={self.path!r}"

    @property
    def _directory(self) -> Path | None:
        """The local directory; None for a name on the hub."""
        directory = Path(self.path).expanduser()
        if directory.is_dir():
            return directory
        if self.path[0] not in "/.~" and self.path.count("/") <= 1:
            return None
        siblings = directory.parent.iterdir() if directory.parent.is_dir() else ()
        known = [
            str(directory.parent / one.name) for one in siblings if os.path.isfile(one / CONFIG)
        ]
        hint = assets.near(str(directory), known)
        raise ValueError(f"model.path={self.path!r}: no such directory{hint}")

    @property
    def _location(self) -> str:
        return self.path if self._directory is None else str(self._directory)

    @property
    def _options(self) -> dict[str, Any]:
        revision = self.revision or "main"
        if self._directory is None:  # the cache stays what it is while the branch moves on
            revision = hub.cached_commit(self.path, CONFIG, self.revision) or revision
        return {"revision": revision, "trust_remote_code": self.trust_remote_code}

    def load(self, device: str | torch.device = "cpu") -> LoadedModel:
        """Loads the checkpoint, from the hub if ``path`` is no directory.

        Raises:
            ValueError: there is none, or its files have changed meanwhile.
        """
        self.check()
        content = self._content()
        with checkpoint.named(self._said):
            model = loading.load(
                self._location,
                loading.torch_dtype(self.dtype),
                device,
                self.streaming,
                **self._options,
            )
        tokenizer = self.tokenizer()
        if self._content() != content:
            raise ValueError(f"{self._said}: changed while it was loaded; start again")
        code = ["its own code"] if self.trust_remote_code else []
        known = digest(content, str(model.dtype), *code)
        return LoadedModel(model, tokenizer, known, self._stored(model))

    def _stored(self, model: PreTrainedModel) -> Codes | None:
        by = self.codes()
        if by is None:
            return None
        return stored_codes(by, self._location, self._options["revision"], model)
