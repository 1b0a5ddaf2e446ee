"""What runs of a sweep have in common is computed once, and reading it back changes no bit."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from runs import CONF, configured, do, words
from standin import Standin

from harness.command.cli import main
from harness.inputs import assets
from harness.records.record import Record, read_rows
from harness.walk.outputs import KeptOutputs, KnownOutputs

pytestmark = pytest.mark.long  # whole runs


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "cache_directory", lambda: tmp_path / "cache")


def kept_outputs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "computed").glob("outputs-*"))


def results(record: Record, folder: Path) -> tuple[object, ...]:
    directory = folder / "local" / record.run
    return (
        record.metrics,
        read_rows(directory / "layers.jsonl"),
        read_rows(directory / "blocks.jsonl"),
    )


def test_a_read_reference_stream_gives_the_same_record(tiny_folder: Path, tmp_path: Path) -> None:
    found, walks = [], []
    for name, kept in (("plain", False), ("written", True), ("read", True)):
        config = configured(
            tiny_folder, tmp_path / name, f"cache.reference={kept}", "calibration.holdout=2"
        )
        with (
            patch.object(
                KeptOutputs, "output", autospec=True, side_effect=KeptOutputs.output
            ) as writes,
            patch.object(
                KnownOutputs, "output", autospec=True, side_effect=KnownOutputs.output
            ) as reads,
        ):
            record = do(config)
        found.append(results(record, tmp_path / name))
        walks.append((record.flops["walk"], record.shared_flops))
        assert (writes.called, reads.called) == (name == "written", name == "read")
    assert found[0] == found[1] == found[2]
    weights = sum(row["rows"] * row["columns"] for row in found[0][1])
    tokens = 6 * 16  # four windows and two held out
    alone = walks[0][0]
    assert walks == [(alone, 0.0), (alone, 0.0), (alone, 2 * weights * tokens)]


def test_other_tokens_or_linears_are_other_outputs(tiny_folder: Path, tmp_path: Path) -> None:
    for more in ([], ["method=rtn", "bits=4"], ["seed=1"], ["quantize.exclude=[*.o_proj]"]):
        do(configured(tiny_folder, tmp_path, "cache.reference=true", *more))
    assert len(kept_outputs(tmp_path)) == 3  # method and bits make no difference


def test_a_run_that_is_given_up_leaves_no_outputs(tiny_folder: Path, tmp_path: Path) -> None:
    record = do(configured(tiny_folder, tmp_path, "cache.reference=true", "stop.error=1e-9"))
    assert record.status == "stopped"
    assert not kept_outputs(tmp_path)


def test_what_does_not_fit_is_not_kept(tiny_folder: Path, tmp_path: Path) -> None:
    do(configured(tiny_folder, tmp_path, "cache.reference=true", "cache.max_gb=1e-5"))
    assert not kept_outputs(tmp_path)


def test_other_threads_round_otherwise_and_are_other_outputs(
    tiny_folder: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            do(configured(tiny_folder, tmp_path / str(threads), "cache.reference=true",
                          f"threads={threads}"))  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert len(kept_outputs(tmp_path)) == 2


def test_another_card_rounds_otherwise_and_has_other_outputs(
    tiny_folder: Path, tmp_path: Path
) -> None:
    words = ("cache.reference=true", "model.dtype=float64", "calibration.length=32")
    with Standin():
        for place, card in enumerate(("A", "B", "A")):
            with patch("torch.cuda.get_device_name", lambda device=None, card=card: card):
                do(configured(tiny_folder, tmp_path / str(place), "device=cuda:0", *words))
    assert len(kept_outputs(tmp_path)) == 2


@pytest.mark.parametrize(("alphas", "kept"), [("0,1", 0), ("0,0.5,1", 1)])
def test_three_runs_of_a_sweep_keep_it_unasked(
    alphas: str, kept: int, tiny_folder: Path, tmp_path: Path
) -> None:
    sweep = ("-m", "method=rtn", f"qep.alpha={alphas}", "baseline=false", "eval.divergence=false")
    assert main(print, CONF, words(tiny_folder, tmp_path, *sweep)) == 0
    assert len(kept_outputs(tmp_path)) == kept


def test_who_asks_for_none_gets_none(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(tiny_folder, tmp_path)
    assert config.cache.reference is None and config.sharing().cache.reference is True
    assert config.sharing().run_id == config.run_id
    asked = configured(tiny_folder, tmp_path, "cache.reference=false")
    assert asked.sharing() == asked
