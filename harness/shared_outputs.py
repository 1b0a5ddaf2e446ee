"""The reference stream's outputs, which the runs of a sweep share by way of the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from torch import Tensor

from harness.inputs.models import LoadedModel
from harness.records.cache import GB, Cache, Unkept, address
from harness.settings.config import Config
from harness.walk.architecture import Plan
from harness.walk.forwards import ReferenceOutputs
from harness.walk.outputs import (
    KeptOutputs,
    KnownOutputs,
    outputs_bytes,
    outputs_content,
    sized,
)


@contextmanager
def reference_outputs(
    config: Config, loaded: LoadedModel, chosen: Plan, batches: Sequence[Tensor], cache: Cache
) -> Iterator[ReferenceOutputs | None]:
    """Reads or keeps the reference stream's outputs, where ``cache.reference`` wants it and they fit.

    Where some of a mixture's experts are not selected, what the others put out has no known size, and
    nothing is kept.
    """
    linears = chosen.linears
    size = outputs_bytes(linears, batches)
    limit = config.cache.max_gb
    wanted = config.cache.reference and sized(chosen)
    if not wanted or (limit is not None and size > limit * GB):
        yield None
        return
    key = address("outputs", **outputs_content(loaded.content_hash, linears, batches))
    if found := cache.find(key):
        with closing(KnownOutputs(found, lambda error: cache.drop(key, error))) as reading:
            yield reading
        return
    with cache.create(key) as folder:
        if folder is None:
            yield None
            return
        writing = KeptOutputs(folder, cache.failed)
        yield writing
        if not writing.complete(size):
            raise Unkept
