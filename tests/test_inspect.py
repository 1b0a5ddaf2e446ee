"""A run is looked at: what was quantised to what, errors, codes, and both models going on from a text."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import configured, do
from safetensors.torch import load_file

from harness.command import inspect
from harness.command.inspection import Inspection, code_counts, relative
from harness.command.start import start
from harness.numerics.packing import pack_nibbles, pack_words
from harness.records.record import read_rows, write_record

pytestmark = pytest.mark.long

RTN = ("method=rtn", "bits=4", "symmetric=true", "baseline=false", "eval.divergence=false")


@given(st.integers(2, 8), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_codes_are_counted_as_they_were_packed(bits: int, columns: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (3, columns), generator=draw)
    found = code_counts(pack_words(codes, bits).numpy(), bits, columns)
    assert found.tolist() == torch.bincount(codes.flatten(), minlength=2**bits).tolist()


def test_four_bit_floats_are_counted_by_value() -> None:
    codes = torch.tensor([[15, 15, 9, 0, 1, 7, 7, 7]])  # −6, −6, −½, 0, ½, 6, 6, 6
    counts = code_counts(pack_nibbles(codes).numpy(), 4, 8)
    assert counts.tolist() == [2, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 3]


def test_a_run_is_shown(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "save=[dense,compressed_tensors]", "+overrides={*.o_proj: {bits: 8}}"
    config = configured(tiny_folder, tmp_path, *RTN, *more)
    record = do(config)
    html = tmp_path / "page.html"
    words = [
        str(config.directory),
        "--html",
        str(html),
        "--prompt",
        "the old river",
        "--tokens",
        "3",
    ]
    assert inspect.main(words) == 0
    text, drawn = capsys.readouterr().out, html.read_text()
    rows = read_rows(config.directory / "layers.jsonl")
    worst = max(rows, key=relative)
    for said in (
        worst["name"],
        f"{relative(worst):#.4g}",
        "8 (8.500 effective)",
        f"{record.bits_per_weight:.3f}",
    ):
        assert said in text and said in drawn
    assert "full precision\nthe old river" in text and "quantised\nthe old river" in text
    weights = load_file(config.directory / "dense" / "model.safetensors")
    shutil.rmtree(config.directory / "dense")
    assert inspect.main([str(config.directory), *words[3:]]) == 0  # from the codes, the same words
    assert capsys.readouterr().out.endswith(text[text.index("\nfull precision") :])
    assert "<script" not in drawn and "http" not in drawn.replace("http-equiv", "")

    found = Inspection.of(config.directory).histograms
    assert found is not None and [*found] == [
        one.name for one in Inspection.of(config.directory).roles
    ]
    for role, levels in (("q_proj", 16), ("o_proj", 256)):
        own = [one for key, one in weights.items() if f"{role}.weight" in key]
        assert len(found[role]) == levels and sum(found[role]) == sum(one.numel() for one in own)
        zeros = sum(int((one == 0).sum()) for one in own)
        assert found[role][levels // 2] == zeros  # the code in the middle stands for 0
    counts = np.array(found["q_proj"])
    assert len(inspect.bars(counts.tolist())) == 16 and inspect.bars([0, 8])[1] == "█"


def test_inspect_is_a_word_of_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(["inspect", str(tmp_path / "none")]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: {tmp_path / 'none'}: no run with a record\n" and not said.out


def test_what_can_not_be_shown_is_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tiny_folder, tmp_path, "method=none")
    do(config)
    assert inspect.main([str(config.directory)]) == 0
    assert "Nothing is quantised" in capsys.readouterr().out
    for words, said in (
        ([f"{config.directory}x"], f"did you mean {config.directory}?"),
        (
            [str(config.directory), "--prompt", "a"],
            "--prompt needs a run with save=dense or c",
        ),
        ([str(config.directory), "--html", str(tmp_path / "no" / "page.html")], "no such folder"),
        ([str(config.directory), "--html", str(tmp_path)], f"--html {tmp_path}: "),
    ):
        assert inspect.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_what_is_damaged_or_failed_is_said_and_not_shown_as_whole(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tiny_folder, tmp_path, *RTN, "save=compressed_tensors")
    record, directory = do(config), config.directory

    def refused(said: str) -> None:
        assert inspect.main([str(directory)]) == 2
        out, error = capsys.readouterr()
        assert not out and said in error and error.count("\n") == 1

    packed = directory / "compressed_tensors" / "model.safetensors"
    packed.write_bytes(packed.read_bytes()[:1000])
    refused(str(packed))
    shutil.rmtree(packed.parent)
    rows = (directory / "layers.jsonl").read_text()
    (directory / "layers.jsonl").write_text("".join(rows.splitlines(keepends=True)[:3]))
    refused("layers.jsonl has 3 of ")
    (directory / "layers.jsonl").unlink()
    refused("layers.jsonl has 0 of ")
    record.status, record.files = "failed", {}
    record.error = {"type": "ValueError", "message": "too large\nby far", "traceback": ""}
    write_record(directory, record)
    assert inspect.main([str(directory)]) == 0
    text = capsys.readouterr().out
    assert "failed: ValueError: too large" in text and "Nothing is quantised" not in text
