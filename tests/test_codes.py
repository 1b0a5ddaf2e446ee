"""Checkpoints of codes are measured as they are, read by the libraries that own them, or refused."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import build
from runs import CONF, configured, do, words
from safetensors.torch import load_file, save_file
from saved import save
from transformers import PreTrainedTokenizerFast

from analysis import load
from harness.command.checks import checks
from harness.command.cli import main
from harness.formats.base import Format
from harness.formats.int import Int
from harness.formats.mxfp4 import MXFP4
from harness.formats.nvfp4 import NVFP4
from harness.inputs import codes
from harness.inputs.checkpoint import CheckpointError
from harness.inputs.models import HubModel
from harness.inputs.weight_files import weight_files
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax
from harness.records.record import Record
from harness.walk.architecture import plan

pytestmark = pytest.mark.long

KEY = "perplexity/text"
FORTY = ("method=rtn", "bits=4", "baseline=false", "eval.divergence=false")


@pytest.fixture
def written(tiny_folder: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model that a GGUF file holds, and the text."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 320}
    folder = tmp_path / "inputs"
    build("llama", **sizes).save_pretrained(folder / "tiny")
    tiny_tokenizer.save_pretrained(folder / "tiny")
    shutil.copy(tiny_folder / "text.txt", folder)
    return folder


def evaluated(folder: Path, results: Path, saved: Path) -> Record:
    """A run of its own that measures a saved checkpoint."""
    config = configured(folder, results, "method=none", f"model.path={saved}")
    assert not list(checks([config]))
    return do(config)


@pytest.mark.parametrize("words", [("symmetric=true", "group_size=32"), ("group_size=32",)])
def test_the_harness_finds_the_figures_of_the_run(
    words: tuple[str, ...], written: Path, tmp_path: Path
) -> None:
    kinds = ("compressed_tensors", "gguf")
    config = configured(written, tmp_path, *FORTY, *words, f"save=[{','.join(kinds)}]")
    record = do(config)
    runs = {kind: evaluated(written, tmp_path, config.directory / kind) for kind in kinds}
    for kind, by in (("compressed_tensors", "compressed-tensors"), ("gguf", "gguf")):
        saved, found_bits = record.saved[kind]["bits_per_weight"], runs[kind].bits_per_weight
        assert found_bits == saved < 8 and saved < runs[kind].bits_per_parameter < 32
        assert runs[kind].summary["codes"] == by
        assert runs[kind].summary["bits"] == round(saved, 2)
    found = {kind: one.metrics[KEY] for kind, one in runs.items()}
    assert found["compressed_tensors"] == record.metrics[KEY]
    nearly = 1e-3 if len(words) == 1 else 0.0  # offsets of Q4_1 are rounded
    assert found["gguf"] == pytest.approx(record.metrics[KEY], rel=nearly)
    assert (found["gguf"] == record.metrics[KEY]) is not bool(nearly)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "forms", [(Int(3, True),), (Int(3),), (MXFP4(),), (Int(4, True), Int(8, True))], ids=str
)
def test_weights_are_those_that_were_measured(
    forms: tuple[Format, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = build("qwen3", intermediate_size=64, tie_word_embeddings=True).to(dtype)
    specs = [GridSpec(form, MinMax(), 32) for form in forms]
    folder, _ = save(model, tiny.tokenizer(), tmp_path, "compressed_tensors", *specs)
    source = HubModel(str(folder))
    if len(forms) > 1 and dtype != torch.float32:
        with pytest.raises(CheckpointError, match="in several ways, which transformers reads as"):
            source.skeleton()
        return
    loaded, bare = source.load().model, source.skeleton()
    for one in (loaded, bare):
        assert one.dtype == dtype and not hasattr(one.config, "quantization_config")
        assert [*one.state_dict()] == [*model.state_dict()]
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for name, one in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), one), name


def test_a_run_of_codes_is_called_so_and_is_no_reference(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = configured(tiny_folder, tmp_path / "made", *FORTY, "save=compressed_tensors")
    do(config)
    path = config.directory / "compressed_tensors"
    sweep = ["-m", "method=none", f"model.path={tiny_folder / 'tiny'},{path}"]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert main(print, CONF, words(tiny_folder, tmp_path / "measured", *sweep)) == 0
    lines = told.getvalue().splitlines()
    assert sum("codes (compressed-tensors) · protocol" in line for line in lines) == 1
    rows = [line for line in lines if line.startswith(("full precision", "codes ("))]
    assert [line.startswith("codes (compressed-tensors)") for line in rows] == [False, True]
    assert " 1.00 " in rows[0] and " 1.00 " not in rows[1]
    frames = load(tmp_path / "measured" / "local")
    assert sorted(frames.runs["method"]) == ["codes (compressed-tensors)", "none"]


def test_gptq_is_read_by_its_library(written: Path, tmp_path: Path) -> None:
    pytest.importorskip("optimum")
    pytest.importorskip("gptqmodel")
    config = configured(written, tmp_path, *FORTY, "group_size=32", "save=[dense,gptq]")
    record = do(config)
    run = evaluated(written, tmp_path, config.directory / "gptq")
    assert run.summary["codes"] == "gptq"
    assert run.bits_per_weight == record.saved["gptq"]["bits_per_weight"]
    found = run.metrics[KEY]
    assert found == pytest.approx(record.metrics[KEY], rel=1e-3)
    loaded = HubModel(str(config.directory / "gptq")).load().model
    exact = HubModel(str(config.directory / "dense")).load().model
    for name, one in exact.named_parameters():  # the library multiplies in float16
        coded = name.rpartition(".")[0] in {item.name for item in plan(exact).linears}
        wanted = one.half().float() if coded else one
        assert torch.equal(loaded.get_parameter(name), wanted), name


def test_gptq_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "is_gptqmodel_available", lambda: False)
    model = build("llama", intermediate_size=64, num_key_value_heads=4)
    spec = GridSpec(Int(4), MinMax(), 16)
    folder, _ = save(model, tiny.tokenizer(), tmp_path, "gptq", spec)
    with pytest.raises(CheckpointError, match="pip install optimum gptqmodel; or save=dense"):
        HubModel(str(folder)).skeleton()


def test_nothing_is_quantised_from_codes(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(tiny_folder, tmp_path, *FORTY, "save=compressed_tensors")
    do(config)
    path = config.directory / "compressed_tensors"
    (line,) = checks([configured(tiny_folder, tmp_path, *FORTY, f"model.path={path}")])
    assert line == (
        f"model.path={str(path)!r}: quantised already (compressed-tensors): method=none evaluates it; "
        "to quantise, the checkpoint that it was made from is needed"
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of compressed-tensors, with zeros."""
    spec = GridSpec(Int(4), MinMax(), 16)
    place = tmp_path_factory.mktemp("packed")
    return save(build("llama"), tiny.tokenizer(), place, "compressed_tensors", spec)[0]


def group(changes: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda said: said["config_groups"]["group_0"].update(changes)


ODD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "activations": (group({"input_activations": {"num_bits": 8}}), "not in its weights alone"),
    "no scales": (group({"weights": {"dynamic": True}}), "not in its weights alone"),
    "caches": (lambda said: said.update(kv_cache_scheme={"num_bits": 8}), "not in its weights alone"),
    "transforms": (lambda said: said.update(transform_config={"a": 1}), "not in its weights alone"),
    "layout": (group({"format": "float-quantized"}), "as float-quantized: pack-quantized and mxfp4"),
    "fp8": (lambda said: said.update(quant_method="fp8"), r"already \(fp8 in its config.json\), in a"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), ODD.values(), ids=ODD)
def test_what_would_be_read_as_another_model_is_refused(
    change: Callable[[dict[str, Any]], object], said: str, packed: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "odd"))
    known = json.loads((folder / "config.json").read_text())
    change(known["quantization_config"])
    (folder / "config.json").write_text(json.dumps(known))
    for reads in (HubModel(str(folder)).skeleton, HubModel(str(folder)).load):
        with pytest.raises(CheckpointError, match=said) as caught:
            reads()
        assert str(caught.value).startswith(f"model.path='{folder}': quantised already")
        assert "\n" not in str(caught.value)


def test_four_bit_floats_that_the_library_multiplies_in_halves(tmp_path: Path) -> None:
    spec = GridSpec(NVFP4(), MinMax(), 16)
    folder, _ = save(build("llama"), tiny.tokenizer(), tmp_path, "compressed_tensors", spec)
    with pytest.raises(CheckpointError, match="as nvfp4-pack-quantized: .*; save=dense holds any"):
        HubModel(str(folder)).skeleton()


@pytest.mark.parametrize("name", ["weight_packed", "weight_scale"])
def test_codes_that_lack_a_part_are_refused(name: str, packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "part"))
    (file,) = weight_files(str(folder), None) or []
    tensors = load_file(file)
    del tensors[f"model.layers.1.self_attn.q_proj.{name}"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        HubModel(str(folder)).load()
    assert "\n" not in str(caught.value)


def test_a_gguf_file_counts_where_it_is_the_weights(
    tiny_tokenizer: PreTrainedTokenizerFast, packed: Path, tmp_path: Path
) -> None:
    model = build("llama", hidden_size=64, intermediate_size=128, vocab_size=320)
    spec = GridSpec(Int(4, True), MinMax(), 32)
    folder, _ = save(model, tiny_tokenizer, tmp_path, "gguf", spec)
    source = HubModel(str(folder))
    (first,) = source.contents().values()
    file = folder / "model.gguf"
    before = first()
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert first() != before
    shutil.copy(file, folder / "other.gguf")
    with pytest.raises(
        CheckpointError, match=r"model.gguf \(and 1 more\): one GGUF file is needed"
    ):
        source.skeleton()

    beside = Path(shutil.copytree(packed, tmp_path / "beside"))
    (content,) = HubModel(str(beside)).contents().values()
    before = content()
    shutil.copy(file, beside)  # a copy in another form
    assert content() == before
