"""Tiny models quantised by plain rounding and saved, without a walk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.methods.rtn import RTN
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec
from harness.recipe import Recipe, quantize_stage
from harness.records.record import Record
from harness.records.saving import Saving
from harness.settings.plugins import load_plugin
from harness.walk.architecture import plan

SUMMARY = {
    "model": "tiny", "method": "rtn", "bits": 3, "group_size": None, "format": "int", "range": "minmax",
    "transform": "none", "alpha": 0.0,
}  # fmt: skip
IDS = torch.arange(3, 40)[None]


def logits(model: PreTrainedModel) -> Tensor:
    """Of a fixed text; float32."""
    with torch.no_grad():
        found: Tensor = model(IDS).logits.float()
    return found


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    kind: str,
    *specs: GridSpec,
    part_bytes: int = 10**9,
) -> tuple[Path, dict[str, object]]:
    """Rounds ``model`` in place, its linears to ``specs`` in turn, and saves it; where, and what is said."""
    chosen = plan(model)
    recipes = {
        one.name: Recipe(RTN(), specs[index % len(specs)])
        for index, one in enumerate(chosen.linears)
    }
    made = load_plugin("export", kind)()
    linears = {one.name: one for one in chosen.linears}
    saving = Saving(
        folder, {kind: made}, model, tokenizer, recipes, linears, part_bytes=part_bytes
    )
    for stage in chosen.stages:
        weights = {one.name: one.weight() for one in stage.linears}
        statistics = collect(torch.eye(stage.linears[0].shape[1]))
        own = {name: recipes[name] for name in weights}
        found = quantize_stage(own, weights, statistics)
        for one in stage.linears:
            one.parameter.data = one.stored(found[one.name].weight)
        saving.passed(stage, found, weights)
    said = saving.finish(Record("tiny", summary=SUMMARY))[kind]
    return folder / kind, said
