"""What was loaded is what was asked for: whatever does not fit is refused in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from families import SMALL, SPECIAL, build
from processes import run
from runs import words
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaModel

from harness.inputs import checkpoint
from harness.inputs.checkpoint import CheckpointError
from harness.inputs.models import HubModel
from harness.inputs.weight_files import weight_files
from harness.walk.experts import unfused
from harness.walk.probe import UnsupportedModelError
from harness.walk.streams import NonFiniteError

WEIGHTS = "model.safetensors"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint (a Llama with a head of its own) to be spoilt."""
    return Path(shutil.copytree(tiny_folder / "tiny", tmp_path / "spoilt"))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / WEIGHTS))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shard(folder: Path) -> list[Path]:
    """Splits the weights over files; returns them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    return files


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: one for key, one in tensors.items() if key not in names}


def refused(folder: Path, pattern: str) -> None:
    """By name and before a weight is read."""
    with pytest.raises(CheckpointError, match=pattern) as caught:
        HubModel(str(folder)).skeleton()
    assert str(caught.value).startswith(f"model.path='{folder}': ")
    assert "\n" not in str(caught.value)


MISFITS = {
    "every key renamed": (
        lambda found: {f"module.{key}": one for key, one in found.items()},
        r"missing model\.embed_tokens\.weight \(and 29 more\), without a place "
        r"module\.lm_head\.weight \(and 29 more\)",
    ),
    "a tensor missing": (without(QUERY), rf"missing {re.escape(QUERY)}$"),
    "a head missing that is not tied": (without("lm_head.weight"), r"missing lm_head\.weight$"),
    "a tensor more": (
        lambda found: found | {"model.layers.1.self_attn.q_norm.weight": torch.ones(8)},
        r"without a place model\.layers\.1\.self_attn\.q_norm\.weight$",
    ),
    "another shape": (
        lambda found: found | {QUERY: found[QUERY][:, :16].contiguous()},
        rf"misshapen {re.escape(QUERY)} \(32, 16\) instead of \(32, 32\)$",
    ),
    "nothing in a tensor": (
        lambda found: found | {QUERY: torch.empty(0, 32)},
        rf"misshapen {re.escape(QUERY)} \(0, 32\) instead of \(32, 32\)$",
    ),
    "codes": (
        lambda found: found | {QUERY: (100 * found[QUERY]).to(torch.int8)},
        rf"{re.escape(QUERY)} stored as I8: quantised already$",
    ),
    "eight bits of a float": (
        lambda found: {key: one.to(torch.float8_e4m3fn) for key, one in found.items()},
        r"model\.embed_tokens\.weight \(and 29 more\) stored as F8_E4M3: quantised already$",
    ),
}


@pytest.mark.parametrize("change, pattern", MISFITS.values(), ids=MISFITS)
def test_tensors_that_do_not_fit(folder: Path, change, pattern: str) -> None:
    edit(folder, change)
    refused(folder, pattern)


def test_tensors_that_do_not_fit_are_refused_when_loaded_too(folder: Path) -> None:
    edit(folder, without(QUERY))
    with pytest.raises(CheckpointError, match=rf"missing {re.escape(QUERY)}$"):
        HubModel(str(folder)).load()


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"hidden_size": 64}, r"misshapen lm_head\.weight \(64, 32\) instead of \(64, 64\)"),
        ({"num_hidden_layers": 2}, r"without a place model\.layers\.2\.input_layernorm\.weight"),
        ({"num_hidden_layers": 4}, r"missing model\.layers\.3\."),
        ({"attention_bias": True}, r"missing model\.layers\.0\.self_attn\.q_proj\.bias \(and 11"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"quantised already \(gptq",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised already \(fp8"),
        ({"model_type": "lama"}, r"knows no model_type='lama'; did you mean 'llama'"),
        ({"is_encoder_decoder": True}, r"an encoder with a decoder"),
    ],
    ids=str,
)
def test_configurations_that_are_not_of_these_weights(
    folder: Path, changes: dict[str, object], pattern: str
) -> None:
    configure(folder, **changes)
    refused(folder, pattern)


def test_files_of_two_models(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    refused(folder, r"both model\.safetensors and model\.safetensors\.index\.json in it")


def test_files_that_are_not_whole(folder: Path) -> None:
    first, second, *_ = shard(folder)
    whole = first.read_bytes()
    first.write_bytes(whole[:-8])
    refused(folder, rf"{first.name}: no whole safetensors file \(.*incomplete")
    first.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(folder, rf"{first.name}: no whole safetensors file")
    shutil.copy(second, first)
    refused(folder, rf"{second.name}: \S+ is in another file too")
    first.unlink()
    refused(folder, rf"index\.json names {first.name}: no such file")
    (folder / "model.safetensors.index.json").write_text("{")
    refused(folder, r"model\.safetensors\.index\.json: no index of a checkpoint")


def test_an_index_that_names_what_its_file_does_not_hold(folder: Path) -> None:
    last = shard(folder)[-1]
    tensors = load_file(last)
    name = next(iter(tensors))
    save_file(without(name)(tensors), last, metadata={"format": "pt"})
    refused(folder, rf"missing {re.escape(name)}$")


def test_files_on_the_hub_are_those_of_its_cache(folder: Path, monkeypatch) -> None:
    def cached(name: str, file: str, revision: str | None) -> str | None:
        assert (name, revision) == ("owner/name", "main")
        return str(folder / file) if (folder / file).is_file() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert weight_files("owner/name", "main") == [folder / WEIGHTS]
    files = shard(folder)
    assert weight_files("owner/name", "main") == files
    files[1].unlink()
    assert weight_files("owner/name", "main") is None  # to be fetched


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    for make in (HubModel(str(folder)).check, HubModel(str(folder)).skeleton):
        with pytest.raises(ValueError, match="an adapter"):
            make()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    def poison(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[QUERY][3, 5] = value
        return tensors

    edit(folder, poison)
    with pytest.raises(
        NonFiniteError, match=rf"spoilt': {re.escape(QUERY)} in float32 is not finite: 1 of 1024"
    ):
        HubModel(str(folder)).load()


def test_weights_that_a_narrower_precision_does_not_hold_are_named(folder: Path) -> None:
    edit(folder, lambda tensors: tensors | {QUERY: tensors[QUERY] + 1e5})
    HubModel(str(folder)).load()
    with pytest.raises(NonFiniteError, match=rf"{re.escape(QUERY)} in float16 is not finite"):
        HubModel(str(folder), dtype="float16").load()


@pytest.mark.parametrize("family", SPECIAL)
def test_every_family_loads_as_it_was_saved(family: str, tmp_path: Path) -> None:
    """With whatever renaming and merging of tensors transformers does on the way."""
    model = build(family)
    model.save_pretrained(tmp_path / family)
    bare = checkpoint.skeleton(str(tmp_path / family), torch.float32)
    loaded = checkpoint.load(str(tmp_path / family), torch.float32)
    assert {one.device.type for one in (*bare.parameters(), *bare.buffers())} == {"meta"}
    for name, one in unfused(model).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], one), name
        assert bare.state_dict()[name].shape == one.shape


def test_experts_that_are_not_all_there(tmp_path: Path) -> None:
    """Their matrices are put together when they are loaded."""
    build("mixtral").save_pretrained(tmp_path)
    lost = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    assert lost in load_file(tmp_path / WEIGHTS)
    edit(tmp_path, without(lost))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.down_proj"):
        checkpoint.skeleton(str(tmp_path), "auto")
    edit(tmp_path, without(lost.replace("w2", "w1")))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.gate_up_proj"):
        checkpoint.skeleton(str(tmp_path), "auto")


def test_integers_that_are_no_weights_are_read(tmp_path: Path) -> None:
    """DeepSeek V4 routes some tokens by a table of experts' numbers."""
    changes = {"num_key_value_heads": 1, "head_dim": 8, "n_routed_experts": 4, "q_lora_rank": 8}
    config = AutoConfig.for_model("deepseek_v4", **{**SMALL, **changes, "num_experts_per_tok": 2})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert any(not one.is_floating_point() for one in stored.values())
    bare = checkpoint.skeleton(str(tmp_path), "auto")
    assert bare.state_dict().keys() == unfused(model).state_dict().keys()
    (gate,) = [name for name in stored if name.endswith("layers.0.ffn.gate.weight")]
    edit(tmp_path, lambda tensors: tensors | {gate: tensors[gate].to(torch.int32)})
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.gate\.weight stored as I32, I64"):
        checkpoint.skeleton(str(tmp_path), "auto")


def test_a_base_model_has_no_head_unless_it_is_tied(folder: Path, tmp_path: Path) -> None:
    base = LlamaModel.from_pretrained(folder)
    base.save_pretrained(tmp_path / "base")
    shutil.copytree(folder, tmp_path / "base", dirs_exist_ok=True, ignore=lambda *_: [WEIGHTS])
    configure(tmp_path / "base", tie_word_embeddings=True)
    loaded = checkpoint.load(str(tmp_path / "base"), "auto")
    assert torch.equal(loaded.lm_head.weight, base.embed_tokens.weight)
    configure(tmp_path / "base", tie_word_embeddings=False)
    refused(tmp_path / "base", r"missing lm_head\.weight$")


def test_what_transformers_declares_of_no_consequence_is_none(folder: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    expected = HubModel(str(folder)).load().model.state_dict()
    edit(folder, lambda tensors: tensors | buffer)
    source = HubModel(str(folder))
    source.skeleton()
    found = source.load().model.state_dict()
    assert all(torch.equal(found[name], one) for name, one in expected.items())


def test_encoders_are_refused(folder: Path, tmp_path: Path) -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model("bert", num_attention_heads=4, **small)
    ).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", r"bert with is_decoder=false is an encoder")
    AutoModel.from_config(
        AutoConfig.for_model("t5", vocab_size=64, d_model=32, d_ff=48, num_layers=1, num_heads=4)
    ).save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", r"t5 is an encoder with a decoder")


def test_a_model_that_looks_ahead_is_no_decoder(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "cpmant",
        **{"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"dim_head": 8, "dim_ff": 48},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "cpmant")
    with pytest.raises(UnsupportedModelError, match="depends on later ones"):
        HubModel(str(tmp_path / "cpmant")).load()


def test_a_run_tells_before_anything_starts(
    folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    edit(folder, without(QUERY))
    arguments = [*words(tiny_folder, tmp_path / "results"), "method=rtn"]
    ended = run([*arguments, f"model.path={folder}"], tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"error: model.path='{folder}': its tensors are not those of a LlamaForCausalLM: "
        f"missing {QUERY}\n"
    )
