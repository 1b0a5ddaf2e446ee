"""Runs that leave checkpoints: complete, of what was measured, and again where they are not there."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from runs import configured, do, quiet_console
from safetensors.torch import load_file
from test_checkpoints import killed_at
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from harness import pipeline
from harness.command.checks import checks
from harness.evaluate.base import Context
from harness.records.cache import Cache
from harness.records.record import CHECKPOINT, read_record
from harness.settings.config import Config, ConfigError
from harness.settings.stale import notices

pytestmark = pytest.mark.long

RTN = ("method=rtn", "group_size=16", "baseline=false", "eval.divergence=false")


def test_a_saved_checkpoint_gives_the_figures_of_its_run(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tiny_folder / "tiny" / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n")
    config = configured(tiny_folder, tmp_path, *RTN, "save=[dense,compressed_tensors]")
    record = do(config)
    assert list(record.saved) == ["dense", "compressed_tensors"]
    again = do(
        configured(
            tiny_folder, tmp_path, "method=none", f"model.path={config.directory / 'dense'}"
        )
    )
    key = "perplexity/text"
    assert again.metrics[key] == record.metrics[key]

    loaded = AutoModelForCausalLM.from_pretrained(
        config.directory / "compressed_tensors",
        quantization_config=CompressedTensorsConfig(dequantize=True),
    ).eval()
    tokenizer = config.model.tokenizer()
    context = Context("", False, Cache(tmp_path / "cache"))
    measured = config.evaluators["perplexity"].evaluate(loaded, tokenizer, context)
    assert measured.metrics[key] == pytest.approx(record.metrics[key], rel=1e-6)

    card = (config.directory / "compressed_tensors" / "README.md").read_text()
    for said in (
        "license: mit",
        f"| {key} | {record.metrics[key]:.6g} |",
        "dequantize=True",
        "method:",
    ):
        assert said in card
    assert "compressed_tensors" not in record.config and "save" not in record.config
    assert config.run_id == configured(tiny_folder, tmp_path, *RTN).run_id


def test_bytes_on_disk_are_those_of_the_record(tiny_folder: Path, tmp_path: Path) -> None:
    words = ("method=rtn", "bits=3", "symmetric=true", "baseline=false", "eval.divergence=false")
    config = configured(tiny_folder, tmp_path, *words, "save=compressed_tensors")
    record = do(config)
    said = record.saved["compressed_tensors"]
    tensors = load_file(config.directory / "compressed_tensors" / "model.safetensors")
    layers = {key: one for key, one in tensors.items() if "weight_" in key}
    stored = sum(one.nbytes for one in layers.values())
    linears = len({key.rpartition(".")[0] for key in layers})
    shapes = linears * 16  # two numbers of 64 bits each
    padding = sum(  # to whole words, at the end of each row of codes
        one.shape[0] * (-columns * 3 % 32) // 8
        for key, one in layers.items()
        if key.endswith("packed")
        for columns in [int(tensors[key.replace("packed", "shape")][1])]
    )
    assert stored - shapes - padding == record.checkpoint_bytes
    assert said["checkpoint_bytes"] == stored
    assert said["bits_per_weight"] == 8 * stored / (
        8 * record.checkpoint_bytes / record.bits_per_weight
    )
    assert said["bytes"] == sum(said["files"].values())


def test_a_done_run_without_the_checkpoint_is_made_again(
    tiny_folder: Path, tmp_path: Path
) -> None:
    first = configured(tiny_folder, tmp_path, *RTN)
    do(first)
    wanting = configured(tiny_folder, tmp_path, *RTN, "save=dense")
    assert first.settled() and not wanting.settled()
    (line,) = notices(wanting)
    assert line.endswith("done, but without save=dense: the run is made again for it")
    do(wanting)
    assert first.settled() and wanting.settled() and not list(notices(wanting))

    weights = wanting.directory / "dense" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not wanting.settled() and first.settled()

    other = configured(tiny_folder, tmp_path, *RTN, "save=gptq", "save_misfits=dense", "bits=4")
    assert other.run_id != first.run_id
    more = configured(tiny_folder, tmp_path, *RTN, "save=compressed_tensors")
    assert list(do(more).saved) == [
        "compressed_tensors",
        "dense",
    ]  # what lies there is not left stale
    assert wanting.settled() and not (more.directory / CHECKPOINT).exists()


@pytest.mark.parametrize("more", [(), ("model.streaming=true",)])
def test_a_killed_run_leaves_the_checkpoint_of_one_that_was_not(
    more: tuple[str, ...], tiny_folder: Path, tmp_path: Path
) -> None:
    words = (*RTN, "save=[compressed_tensors,dense]", "checkpoint.every=1", *more)
    whole = configured(tiny_folder, tmp_path / "whole", *words)
    do(whole)
    config = configured(tiny_folder, tmp_path / "killed", *words)
    with killed_at(17):  # in the third block
        do(config)
    kept = sorted(path.name for path in (config.directory / CHECKPOINT / "dense").iterdir())
    assert kept == ["00000-00003.safetensors", "00004-00007.safetensors"]
    record = do(config)
    assert record.resumed == 1
    for kind in ("compressed_tensors", "dense"):
        mine, its = (
            {k: v for path in (one.directory / kind).glob("*.safetensors")
             for k, v in load_file(path).items()}
            for one in (config, whole)
        )  # fmt: skip
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key], its[key]) for key in mine)


def test_a_checkpoint_without_the_parts_is_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    plain = configured(tiny_folder, tmp_path, *RTN, "checkpoint.every=1")
    with killed_at(17):
        do(plain)
    wanting = configured(tiny_folder, tmp_path, *RTN, "checkpoint.every=1", "save=dense")
    console, told = quiet_console()
    record = pipeline.run(wanting, console)
    assert (
        "the checkpoint lacks what save=dense holds of its linears, whole: left out"
        in told.getvalue()
    )
    assert record.resumed == 0 and wanting.settled()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("save=dens", "save='dens': allowed are .*did you mean 'dense'"),
        ("save=gptq method=none", "save=gptq: method=none quantises nothing; save=dense holds it"),
    ],
)
def test_a_kind_that_there_is_not(
    words: str, said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(tiny_folder, tmp_path, *words.split())


def refused(config: Config) -> str:
    (line, *_) = checks([config])
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("method=awq save=compressed_tensors", "save=compressed_tensors: model.layers.0.self_attn.q_proj"
         " (and 20 more): transform=awq: codes in another basis; these can: dense"),
        ("method=rtn '+overrides={*.q_proj: {transform: awq}}' save=gptq bits=4",
         "basis (save_misfits=dense stores such dense); these can: dense"),
        ("method=awq save=gptq save_misfits=dense", "holds none of the linears as codes"),
        ("format=nf4 bits=4 save=gptq", "format=nf4; these can: dense"),
        ("save=gguf group_size=16 symmetric=true", "groups of 16 columns: has multiples of 32; these can: "
         "compressed_tensors, dense"),
        ("method=rtn bits=4 '+overrides={*.q_proj: {bits: 8}}' save=gptq", "4 bits asymmetric"),
    ],
)  # fmt: skip
def test_what_can_not_be_held_is_refused_before_anything_starts(
    words: str, said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    line = refused(configured(tiny_folder, tmp_path, *shlex.split(words)))
    assert said in line, line
    assert not (tmp_path / "local").exists() or not list((tmp_path / "local").iterdir())


def test_bits_under_a_budget_are_one_kind_s_only(tiny_folder: Path, tmp_path: Path) -> None:
    words = ("method=rtn", "bits=[2,4]", "budget=4.2", "calibration.holdout=1", "symmetric=true")
    assert "save=gptq: 2 bits symmetric in groups of a row and 4 bits" in refused(
        configured(tiny_folder, tmp_path, *words, "save=gptq")
    )
    fitting = configured(tiny_folder, tmp_path, *words, "save=compressed_tensors")
    assert not list(checks([fitting]))


def test_jobs_of_one_run_save_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    jobs = [
        configured(tiny_folder, tmp_path, f"save={kind}", "bits=4") for kind in ("dense", "gptq")
    ]
    assert "save=[dense,gptq] saves all" in next(iter(checks(jobs)))


def test_linears_that_do_not_fit_are_stored_dense_where_that_is_said(
    tiny_folder: Path, tmp_path: Path
) -> None:
    words = ("method=rtn", "bits=4", "symmetric=true", "baseline=false", "eval.divergence=false")
    config = configured(
        tiny_folder, tmp_path, *words, "+overrides={*.o_proj: {transform: hadamard}}",
        "save=[compressed_tensors,dense]", "save_misfits=dense",
    )  # fmt: skip
    record = do(config)
    names = record.saved["compressed_tensors"]["dense"]
    assert names == [f"model.layers.{index}.self_attn.o_proj" for index in range(3)]
    folder = config.directory / "compressed_tensors"
    assert "model.layers.0.self_attn.o_proj" in (folder / "README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    dense = AutoModelForCausalLM.from_pretrained(config.directory / "dense")
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, dense(ids).logits)


def test_full_precision_can_be_saved_too(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(tiny_folder, tmp_path, "method=none", "save=dense")
    do(config)
    saved = load_file(config.directory / "dense" / "model.safetensors")
    source = load_file(tiny_folder / "tiny" / "model.safetensors")
    assert saved.keys() == source.keys() and all(torch.equal(saved[k], source[k]) for k in saved)
    assert read_record(config.directory).saved["dense"]["bits_per_weight"] == 32
    shutil.rmtree(config.directory / "dense")
    assert not config.settled()
