"""A saved checkpoint, loaded by the library that owns its kind, is the model that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import tiny
import torch
from families import FAMILIES, build
from gptq_layout import unpacked, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import instance
from safetensors.torch import load_file
from saved import logits, save
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, GgufConfig, PreTrainedModel

from harness.export.base import Source
from harness.formats.int import Int
from harness.formats.mxfp4 import MXFP4
from harness.formats.nvfp4 import NVFP4
from harness.methods.gptq import GPTQ
from harness.methods.quantease import Outliers, QuantEase
from harness.methods.rtn import RTN
from harness.numerics.packing import pack_words
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax
from harness.recipe import Recipe, quantize_stage
from harness.settings.plugins import load_plugin
from harness.transforms.rescale import Rescale
from harness.walk.architecture import Linear, plan
from harness.walk.experts import unfused

pytestmark = pytest.mark.long

WHOLE = CompressedTensorsConfig(dequantize=True)


def load(folder: Path, **options: object) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_words_have_the_codes_one_after_the_other(bits: int, count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (3, count), generator=draw)
    words = pack_words(codes.to(torch.uint8), bits)
    assert words.shape == (3, -(-count * bits // 32)) and words.dtype == torch.int32
    assert (unpacked(words, bits)[:, :count] == codes.numpy()).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_weights_of_every_family(family: str, tmp_path: Path) -> None:
    model = build(family)
    folder, said = save(
        model, tiny.tokenizer(), tmp_path, "dense", GridSpec(Int(3), MinMax()), part_bytes=9000
    )
    assert (folder / "model.safetensors.index.json").exists() and said["bits_per_weight"] == 32
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(logits(loaded), logits(model))


def test_dense_weights_of_a_mixture_are_stored_as_its_checkpoints_have_them(
    tmp_path: Path,
) -> None:
    build("mixtral").save_pretrained(tmp_path / "source")
    model = unfused(load(tmp_path / "source"))
    folder, said = save(model, tiny.tokenizer(), tmp_path, "dense", GridSpec(Int(3), MinMax()))
    stored = load_file(folder / "model.safetensors")
    source = load_file(tmp_path / "source" / "model.safetensors")
    assert stored.keys() == source.keys()
    loaded = unfused(load(folder))
    assert all(torch.equal(loaded.get_parameter(k), one) for k, one in model.named_parameters())
    changed = [key for key in source if not torch.equal(stored[key], source[key])]
    assert sum("experts" in key for key in changed) == 3 * 4 * 3


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("bits", "group", "dtype"),
    [
        (2, 16, torch.float32), (3, None, torch.float32), (4, 16, torch.float32),
        (8, None, torch.float32), (3, 16, torch.bfloat16), (4, None, torch.float16),
    ],
)  # fmt: skip
def test_compressed_tensors(
    bits: int, group: int | None, dtype: torch.dtype, symmetric: bool, tmp_path: Path
) -> None:
    model = build("llama").to(dtype)
    spec = GridSpec(Int(bits, symmetric), MinMax(), group)
    folder, _ = save(model, tiny.tokenizer(), tmp_path, "compressed_tensors", spec)
    if symmetric and dtype == torch.float32:
        assert torch.equal(logits(load(folder)), logits(model))
        return
    loaded = load(folder, quantization_config=WHOLE)
    for name, one in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), one)


def test_compressed_tensors_in_several_ways(tmp_path: Path) -> None:
    model = build("llama")
    specs = [
        GridSpec(Int(4, symmetric=True), MinMax(), 16),
        GridSpec(Int(8, symmetric=True), MinMax()),
    ]
    chosen = [one.name for one in plan(model).linears]
    folder, _ = save(model, tiny.tokenizer(), tmp_path, "compressed_tensors", *specs)
    assert torch.equal(logits(load(folder)), logits(model))
    groups = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert [one["targets"] for one in groups["config_groups"].values()] == [
        chosen[::2],
        chosen[1::2],
    ]


def test_blocks_of_four_bit_floats(tmp_path: Path) -> None:
    shape = {"intermediate_size": 64}
    model = build("llama", **shape)
    spec = GridSpec(MXFP4(), MinMax(), 32)
    folder, said = save(model, tiny.tokenizer(), tmp_path / "mx", "compressed_tensors", spec)
    assert said["bits_per_weight"] == 4.25
    assert torch.equal(logits(load(folder, quantization_config=WHOLE)), logits(model))

    model = build("llama", **shape)
    spec = GridSpec(NVFP4(), MinMax(), 16)
    folder, _ = save(model, tiny.tokenizer(), tmp_path / "nv", "compressed_tensors", spec)
    tensors = load_file(folder / "model.safetensors")
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for one in plan(model).linears:
        packed = tensors[f"{one.name}.weight_packed"]
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).long()
        scale = tensors[f"{one.name}.weight_scale"].float().repeat_interleave(16, dim=1)
        dense = torch.where(codes < 8, 1.0, -1.0) * values[codes % 8] * scale
        dense = dense / tensors[f"{one.name}.weight_global_scale"]
        torch.testing.assert_close(dense, one.weight(), rtol=1e-6, atol=0)
    loaded = load(folder, quantization_config=WHOLE)  # the library multiplies in bfloat16
    for one in plan(model).linears:
        found = loaded.get_parameter(f"{one.name}.weight")
        torch.testing.assert_close(found, one.weight(), rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("bits", "symmetric", "group"),
    [(2, False, 16), (3, True, 16), (3, False, None), (4, False, None), (8, False, 16)],
)
def test_gptq(bits: int, symmetric: bool, group: int | None, tmp_path: Path) -> None:
    model = build("llama", intermediate_size=64, num_key_value_heads=4)
    spec = GridSpec(Int(bits, symmetric), MinMax(), group)
    folder, _ = save(model, tiny.tokenizer(), tmp_path, "gptq", spec)
    tensors = load_file(folder / "model.safetensors")
    for one in plan(model).linears:
        assert f"{one.name}.weight" not in tensors
        assert torch.equal(weight(tensors, one.name, bits), one.weight())
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (said["bits"], said["sym"], said["group_size"]) == (bits, symmetric, group or -1)
    assert said["checkpoint_format"] == "gptq_v2" and said["dynamic"] == {}
    card = (folder / "README.md").read_text()
    assert "vllm serve PATH" in card and "with optimum and gptqmodel" in card
    assert ('backend="torch"' in card) is (bits == 4 and not symmetric and group is None)


@pytest.mark.parametrize(
    ("family", "bits", "symmetric", "group", "kind"),
    [
        ("llama", 2, True, 32, "Q4_0"), ("qwen2", 4, True, None, "Q4_0"),
        ("llama", 5, True, 32, "Q5_0"), ("qwen2", 8, True, 32, "Q8_0"),
        ("llama", 3, False, 32, "Q4_1"), ("llama", 5, False, 64, "Q5_1"),
        ("mistral", 4, True, 32, "Q4_0"), ("qwen3", 4, True, 32, "Q4_0"),
    ],
)  # fmt: skip
def test_gguf(
    family: str, bits: int, symmetric: bool, group: int | None, kind: str, tmp_path: Path,
    tiny_tokenizer: object,
) -> None:  # fmt: skip
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 320}
    sizes |= {"mistral": {"sliding_window": None}, "qwen3": {"head_dim": 128}}.get(family, {})
    model = build(family, **sizes, num_key_value_heads=2, tie_word_embeddings=family == "qwen2")
    spec = GridSpec(Int(bits, symmetric), MinMax(), group)
    folder, _ = save(model, tiny_tokenizer, tmp_path, "gguf", spec)  # type: ignore[arg-type]
    loaded = load(folder, gguf_file="model.gguf", quantization_config=GgufConfig(dequantize=True))
    assert f"linears are {kind}," in (folder / "README.md").read_text()
    if symmetric:
        torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-6)
    for one in plan(model).linears:
        found = loaded.get_parameter(f"{one.name}.weight")
        if symmetric:
            assert torch.equal(found, one.weight())
        else:  # the offset of a block is rounded to float16: the range's end, and half a step
            bound = 2.0**-11 * one.weight().abs().max() * (1 + 1 / (2**bits - 1))
            assert 0 < (found - one.weight()).abs().max() <= bound


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["dense", "compressed_tensors", "gptq", "gguf"])
def test_what_linears_take_is_what_lies_on_disk(
    kind: str, symmetric: bool, tmp_path: Path, tiny_tokenizer: object
) -> None:
    model = build("llama", hidden_size=128, intermediate_size=256, vocab_size=320)
    spec = GridSpec(Int(3, symmetric), MinMax(), 128)
    folder, said = save(model, tiny_tokenizer, tmp_path, kind, spec, part_bytes=10**5)  # type: ignore[arg-type]
    linears = plan(model).linears
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    stored = 0
    if kind == "gguf":
        own = {names.get_name(one.name) for one in linears}
        every = gguf.GGUFReader(folder / "model.gguf").tensors
        stored = sum(int(one.n_bytes) for one in every if one.name.removesuffix(".weight") in own)
    else:
        own = {one.name for one in linears}
        for file in folder.glob("*.safetensors"):
            every = load_file(file).items()
            stored += sum(one.nbytes for key, one in every if key.rpartition(".")[0] in own)
    assert said["checkpoint_bytes"] == stored > 0
    weights = sum(one.shape[0] * one.shape[1] for one in linears)
    assert said["bits_per_weight"] == 8 * stored / weights
    if kind == "compressed_tensors":
        assert said["bits_per_weight"] < (3.2 if symmetric else 3.4)


def reason(kind: str, recipe: Recipe, family: str = "llama", **changes: object) -> str | None:
    model = build(family, **changes)
    name = next(one.name for one in plan(model).linears)
    found: str | None = load_plugin("export", kind)().problem(
        Linear(name, 0, model.get_submodule(name)), recipe
    )
    return found


INT = GridSpec(Int(4), MinMax(), 16)


@pytest.mark.parametrize(
    ("kind", "recipe", "said"),
    [
        ("compressed_tensors", Recipe(RTN(), INT, {"rescale": Rescale()}), "transform=rescale"),
        ("compressed_tensors", Recipe(GPTQ(act_order=True), INT), "no neighbours"),
        ("gptq", Recipe(GPTQ(act_order=True), INT), None),
        ("gptq", Recipe(QuantEase(outliers=Outliers(0.1)), INT), "outliers"),
        ("gptq", Recipe(RTN(), GridSpec(Int(5), MinMax(), 16)), "bits=5: has 2, 3, 4 and 8"),
        ("gptq", Recipe(RTN(), GridSpec(Int(4, scales="float32"), MinMax())), "scales=float32"),
        ("gptq", Recipe(RTN(), GridSpec(NVFP4(), MinMax(), 16)), "format=nvfp4"),
        ("gguf", Recipe(RTN(), INT), "groups of 16 columns: has multiples of 32"),
        ("gguf", Recipe(RTN(), GridSpec(Int(6), MinMax(), 32)), "bits=6 with zeros: has up to 5"),
        ("dense", Recipe(RTN(), GridSpec(NVFP4(), MinMax(), 16), {"a": Rescale()}), None),
    ],
)
def test_what_a_kind_can_not_hold_is_named(kind: str, recipe: Recipe, said: str | None) -> None:
    found = reason(kind, recipe)
    assert found is said or (said is not None and said in str(found))


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("mistral", {}, "sliding_window=8: writes models without"),
        ("qwen2", {"use_sliding_window": True}, "sliding_window=4096: writes models without"),
        ("qwen3", {}, "head_dim=8: transformers reads 128 into a qwen3"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu: writes silu"),
        ("llama", {"mlp_bias": True}, "mlp_bias=true: writes models without"),
        ("gemma3_text", {}, "a gemma3_text: writes llama, mistral, qwen2 and qwen3"),
        ("llama", {}, None),
    ],
)
def test_models_that_a_gguf_file_is_not_written_of(
    family: str, changes: dict[str, object], said: str | None, tiny_tokenizer: object
) -> None:
    source = Source(build(family, **changes), tiny_tokenizer)  # type: ignore[arg-type]
    assert load_plugin("export", "gguf")().conflict(source) == said


def test_weights_stored_the_other_way_round_are_dense_only() -> None:
    recipe = Recipe(RTN(), GridSpec(Int(4), MinMax()))
    for kind in ("compressed_tensors", "gptq", "gguf"):
        assert "Conv1D" in str(reason(kind, recipe, "gpt2"))
    assert reason("dense", recipe, "gpt2") is None


def test_act_order_is_held_by_gptq_with_its_index(tmp_path: Path) -> None:
    values, inputs, _ = instance(rows=32, columns=64)
    recipe = Recipe(GPTQ(act_order=True), INT)
    found = quantize_stage({"w": recipe}, {"w": values}, collect(inputs))["w"]
    module = torch.nn.Linear(64, 32)
    tensors = load_plugin("export", "gptq")().tensors(
        Linear("w", 0, module), found, recipe.spec.form
    )
    assert found.grid.indexed
    assert torch.equal(weight(tensors, "w", 4), found.weight)
