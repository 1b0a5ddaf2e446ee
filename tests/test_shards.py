"""Checkpoints are written a shard at a time: no more than one is in memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import SMALL, build
from safetensors import safe_open
from saved import SUMMARY
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from harness.formats.int import Int
from harness.methods.rtn import RTN
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax
from harness.recipe import Recipe, quantize_stage
from harness.records import saving as module
from harness.records.memory import forget_peak, peak_memory
from harness.records.record import Record
from harness.records.saving import Saving
from harness.settings.plugins import load_plugin
from harness.walk.architecture import plan

pytestmark = pytest.mark.long

MEGA = 2**20


def test_all_kinds_together_hold_one_shard(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama", hidden_size=64, intermediate_size=128, vocab_size=320)
    chosen, recipe = plan(model), Recipe(RTN(), GridSpec(Int(4, True), MinMax(), 32))
    linears = {one.name: one for one in chosen.linears}
    names = ("dense", "compressed_tensors", "gptq", "gguf")
    kinds = {name: load_plugin("export", name)() for name in names}
    part = 60_000
    saving = Saving(
        tmp_path, kinds, model, tiny_tokenizer, dict.fromkeys(linears, recipe), linears, part_bytes=part
    )  # fmt: skip
    written: list[int] = []
    original = module.write_sealed

    def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        written.append(sum(one.untyped_storage().nbytes() for one in tensors.values()))
        original(path, tensors, header)

    monkeypatch.setattr(module, "write_sealed", write)
    largest = 0
    for stage in chosen.stages:
        weights = {one.name: one.weight() for one in stage.linears}
        own = dict.fromkeys(weights, recipe)
        found = quantize_stage(own, weights, collect(torch.eye(stage.linears[0].shape[1])))
        before, count = saving.held_bytes, len(written)
        saving.passed(stage, found, weights)
        assert saving.held_bytes < part
        grown = saving.held_bytes + sum(written[count:]) - before
        largest = max(largest, grown)
    saving.finish(Record("tiny", summary=SUMMARY))
    embeddings = model.model.embed_tokens.weight.nbytes
    assert len(written) > 3 * len(kinds) and max(written) < part + max(largest, embeddings)
    for name in names[:-1]:
        shards = sorted((tmp_path / name).glob("*.safetensors"))
        assert len(shards) > 2
        keys = [key for path in shards for key in safe_open(path, "pt").keys()]  # noqa: SIM118
        assert len(keys) == len(set(keys))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not forget a peak")
def test_the_process_grows_by_one_shard(tmp_path: Path) -> None:
    shape = {**SMALL, "hidden_size": 1024, "intermediate_size": 1024, "num_attention_heads": 8}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).eval()
    chosen = plan(model)
    linears = {one.name: one for one in chosen.linears}
    for name, one in model.named_parameters():
        if name.removesuffix(".weight") not in linears:
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, nn.Parameter(torch.ones(one.shape)))
    recipes = dict.fromkeys(linears, Recipe(RTN(), GridSpec(Int(4), MinMax())))
    kinds = {"dense": load_plugin("export", "dense")()}
    part = 8 * MEGA
    saving = Saving(
        tmp_path, kinds, model, tiny.tokenizer(), recipes, linears, part_bytes=part
    )  # fmt: skip
    forget_peak()
    before = peak_memory()
    for stage in chosen.stages:  # each linear is there while it passes, as where a model streams
        bare = {one: one.parameter for one in stage.linears}
        for one in stage.linears:
            one.module.weight = nn.Parameter(torch.ones(1024, 1024))
        saving.passed(stage, dict.fromkeys(linears), {})  # type: ignore[arg-type]
        for one, weight in bare.items():
            one.module.weight = weight
    saving.finish(Record("tiny", summary=SUMMARY))
    grown = peak_memory() - before
    total = sum(path.stat().st_size for path in (tmp_path / "dense").glob("*.safetensors"))
    assert total > 84 * MEGA
    assert grown < part + 3 * 4 * MEGA + 16 * MEGA  # a shard, a stage's linears, what Python takes
