"""Records for the tests of analysis: what a run would leave, without the run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.records.record import BLOCKS, LAYERS, Record, append_row, write_record

HASHES = {
    "model": "aaaaaaaabb",
    "calibration": "cccc",
    "wiki": "eeeeeeeeff",
    "quiz": "version 1: 99",
}


def leave(
    folder: Path,
    method: str = "rtn",
    bits: int = 3,
    alpha: float | str = 0.0,
    seed: int = 0,
    group_size: int | None = None,
    *,
    perplexity: float | None = None,
    metrics: Mapping[str, float] | None = None,
    samples: Mapping[str, Sequence[float]] | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    errors: Sequence[float] = (),
    changes: Mapping[str, Any] | None = None,
    hashes: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
    name: str = "",
    **fields: Any,
) -> str:
    """Leaves one record below ``folder`` and returns its name.

    ``perplexity`` on wiki also gives ten windows of that loss; ``errors`` are those behind every block;
    ``changes`` are settings by dotted name, ``about`` is added to the summary.
    """
    run = (
        name or f"m-{method}-w{bits}-g{group_size}-a{alpha}-s{seed}-{len(list(folder.glob('*')))}"
    )
    record = Record(run, "done", config=identity(method, bits, alpha, seed, group_size))
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        node = record.config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    record.summary = {"model": "m", "method": method, "bits": bits, "group_size": group_size}
    record.summary |= {"alpha": alpha, "seed": seed} | dict(about or {})
    record.metrics = dict(metrics or {})
    record.samples = {key: list(values) for key, values in (samples or {}).items()}
    record.hashes = HASHES | dict(hashes or {})
    record.seconds = {"correct": 1.0, "quantise": 1.0}
    if perplexity is not None:
        record.metrics["perplexity/wiki"] = perplexity
        record.samples.setdefault("loss/wiki", [math.log(perplexity)] * 10)
    for key, value in fields.items():
        setattr(record, key, value)
    if errors:
        record.metrics["error/last_block"] = errors[-1]
    (folder / run).mkdir(parents=True)
    curve = [
        {"block": i, "name": "b", "relative_error": one, "relative_error_token": one}
        for i, one in enumerate(errors)
    ]
    for name, rows in ((LAYERS, layers), (BLOCKS, curve)):
        written = b"".join(append_row(folder / run / name, row) for row in rows)
        digest = hashlib.sha256(written).hexdigest()
        record.files[name] = {"rows": len(rows), "sha256": digest}
    write_record(folder / run, record)
    return run


def identity(
    method: str, bits: int, alpha: float | str, seed: int, group_size: int | None
) -> dict[str, Any]:
    """A configuration as a record keeps it."""
    config: dict[str, Any] = {
        "model": {"name": "m", "dtype": "float32"},
        "eval": {"perplexity": {"corpora": {"wiki": {"windows": 10}}}},
        "method": {"_target_": f"harness.methods.{method}.X", "damping": 0.01},
    }
    if method == "none":
        return config
    return config | {
        "grid": {"bits": bits, "group_size": group_size, "symmetric": False},
        "qep": {"alpha": alpha, "statistics": "quantized"}
        | ({} if alpha == 0 else {"damping": 1.0}),
        "calibration": {"windows": 16, "holdout": 4 if alpha == "auto" else 0},
        "seed": seed,
    }
