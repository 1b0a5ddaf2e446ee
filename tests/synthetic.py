"""Made-up records of many runs: every kind a figure or a table can meet, without a model."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from analysis.frames import Entry, Frames, frames
from harness.records.record import Record

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QUALITY = {"rtn": 4.0, "gptq": 1.5, "awq": 2.0, "quantease": 1.3, "qqa": 1.2}
SWEEPS, STEPS, WINDOWS = 20, 80, 8
FULL = 13.1  # perplexity in full precision


def entry(
    method: str = "gptq",
    bits: int = 3,
    alpha: float | str = 0.0,
    seed: int = 0,
    *,
    model: str = "tiny",
    blocks: int = 6,
    part: str | None = None,
    group_size: int | None = None,
    corpora: tuple[str, ...] = ("wiki",),
    perplexity: float | None = None,
    options: dict[str, Any] | None = None,
    qep: dict[str, Any] | None = None,
    calibration: dict[str, Any] | None = None,
    transform: str | None = None,
    status: str = "done",
) -> Entry:
    """One run. Its perplexity, unless given, falls with bits and with QEP, with noise by seed."""
    options = {"relax_every": 3} | (options or {}) if method == "quantease" else options or {}
    config: dict[str, Any] = {
        "model": {"_target_": "harness.inputs.models.HubModel", "name": model, "path": model},
        "method": {"_target_": f"harness.methods.{method}.X", **options},
        "eval": {"perplexity": {"corpora": {name: {"name": name} for name in corpora}}},
    }
    summary: dict[str, Any] = {"model": model, "method": method, "bits": bits, "alpha": alpha}
    summary |= {"group_size": group_size, "seed": seed}
    if method != "none":
        correction = {"alpha": alpha, "damping": 1.0, **(qep or {})}
        config |= {
            "grid": {"bits": bits, "group_size": group_size, "symmetric": False, "mse": False},
            "qep": {"statistics": "quantized"} | (correction if alpha != 0 else {"alpha": 0.0}),
            "quantize": {"include": ["*"], "exclude": [], "blocks": part},
            "calibration": {"name": "wiki", "windows": 16, "holdout": 4, **(calibration or {})},
            "seed": seed,
        }
        summary |= {"calibration_tokens": 4096, "heldout_tokens": 1024}
    if transform is not None:
        config["transform"] = {transform: {"_target_": f"harness.transforms.{transform}.X"}}
        summary["own"] = ["range", "format"]
    text = json.dumps(config, sort_keys=True)
    run = f"{model}-{method}-w{bits}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    noise = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))
    gain = 0.8 if alpha != 0 else 1.0
    excess = QUALITY.get(method, 0.0) * 4.0 ** (4 - bits) * gain * (1 + 0.1 * noise.random())
    value = FULL * (1 + excess / 4) if perplexity is None else perplexity
    record = Record(run, status, config=config, summary=summary, bits_per_weight=bits + 0.03)  # type: ignore[arg-type]
    record.hashes = {"model": model * 8, **{name: name * 8 for name in corpora}}
    if status == "done":
        record.metrics = {f"perplexity/{name}": value * (1 + i) for i, name in enumerate(corpora)}
        record.samples = {f"loss/{name}": [float(np.log(value))] * WINDOWS for name in corpora}
    record.baseline = f"{model}-none"
    if method == "none":
        record.run, record.baseline, record.bits_per_weight = f"{model}-none", None, 32.0
        return Entry(record)
    depth = np.arange(blocks)
    inside = range(blocks)
    if part:
        first, last = (int(one) if one else None for one in part.split(":"))
        inside = range(blocks)[first:last]
    growth = np.cumsum(np.where(np.isin(depth, inside), 0.15, 0.03))
    level = 0.004 * excess * np.exp(growth) * (1 + 0.1 * noise.random(blocks))
    rows = [
        {"block": int(b), "name": f"layers.{b}", "relative_error": float(level[b]),
         "relative_error_heldout": float(1.3 * level[b]),
         "relative_error_token": float(2 * level[b]),
         "relative_error_token_heldout": float(2.6 * level[b])}
        for b in depth
    ]  # fmt: skip
    layers = [
        linear(method, b, role, level[b], gain, noise) for b in inside for role in ROLES
    ]  # fmt: skip
    return Entry(record, layers, rows)


def linear(
    method: str, block: int, role: str, level: float, gain: float, noise: np.random.Generator
) -> dict[str, Any]:
    """The row of a linear; its role decides how large its error is."""
    signal = 100.0 * (1 + block)
    error = level * (1 + ROLES.index(role)) * signal * (0.8 + 0.4 * noise.random())
    row: dict[str, Any] = {
        "name": f"layers.{block}.{role}", "block": block, "role": role, "rows": 8, "columns": 16,
        "rounding_error": 0.3 * error, "local_error": (0.35 if gain < 1 else 0.3) * error,
        "total_error": error, "signal": signal,
    }  # fmt: skip
    if method == "quantease":
        dips = np.where(np.arange(SWEEPS) % 3 == 1, 0.2, 1.0)
        dips[-1] = 1.0
        row["traces"] = {"loss": (0.3 * error * dips * (1 + np.exp(-np.arange(SWEEPS)))).tolist()}
    if method == "qqa":
        time = np.arange(STEPS) / STEPS
        row["traces"] = {
            "loss": (0.3 * error * (1 + time)).tolist(),
            "penalty": (128 * np.exp(-5 * time)).tolist(),
            "diversity": (1 + 4 * time).tolist(),
        }
    return row


def made(*entries: Entry) -> Frames:
    """The frames of these runs, as they would be loaded from disk."""
    return frames(entries)


def many(count: int, blocks: int = 30) -> Frames:
    """About ``count`` runs of several models, methods, bits, alphas and seeds, in full precision too."""
    models = [f"model_{size}b" for size in (1, 3, 7, 13, 70)]
    entries = [entry("none", 16, model=model, corpora=("wiki", "c4")) for model in models]
    cases = [
        (model, method, bits, alpha, seed)
        for seed in range(4)
        for alpha in (0.0, 0.5, 1.0, "auto")
        for model in models
        for bits in (2, 3, 4)
        for method in QUALITY
    ]
    for model, method, bits, alpha, seed in cases[: count - len(entries)]:
        entries.append(
            entry(method, bits, alpha, seed, model=model, blocks=blocks, corpora=("wiki", "c4"))
        )
    return frames(entries)
