"""Recorded errors, from the statistics and from the walk, against plain forwards of two models."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_run import ROOT, configured, do

from harness import pipeline
from harness.command.cli import plan_jobs
from harness.inputs.models import AssetModel
from harness.records.record import read_rows
from harness.records.rows import accumulation

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("errors", "last", "growth"),
    [
        ([0.1, 0.2, 0.4], 0.4, np.log(2)),
        ([0.0, 0.1, 0.2], 0.2, np.log(2)),  # the first block is not quantised
        ([0.1, np.inf, np.inf], np.inf, np.nan),
        ([0.1, 0.2, np.nan], np.nan, np.nan),  # not the last that is a number
        ([np.nan, np.nan], np.nan, np.nan),
    ],
)
def test_a_stream_that_overflows_has_no_finite_error_behind_the_last_block(
    errors: list[float], last: float, growth: float
) -> None:
    rows = [{"block": i, "relative_error_heldout": one} for i, one in enumerate(errors)]
    found = accumulation(rows)
    assert list(found) == ["error/last_block_heldout", "error/growth_heldout"]
    np.testing.assert_allclose(list(found.values()), [last, growth], rtol=1e-12)


@pytest.mark.parametrize(("blocks", "first", "quantised"), [("0:1", 0, [0]), ("1:2", 1, [1])])
def test_blocks_after_the_quantised_ones_report_the_error_they_pass_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    blocks: str, first: int, quantised: list[int],
) -> None:  # fmt: skip
    models = kept(monkeypatch)
    config = configured(
        tiny_folder, tmp_path, "method=rtn", "bits=3", f"quantize.blocks='{blocks}'",
        "calibration.holdout=2",
    )  # fmt: skip
    record = do(config)
    layers = read_rows(config.directory / "layers.jsonl")
    assert sorted({row["block"] for row in layers}) == quantised
    rows = read_rows(config.directory / "blocks.jsonl")
    assert [row["block"] for row in rows] == [0, 1, 2]
    errors = [row["relative_error"] for row in rows]
    whole, tokens = block_errors(*models[0])
    assert errors == pytest.approx(whole, rel=1e-4)
    assert [row["relative_error_token"] for row in rows] == pytest.approx(tokens, rel=1e-4)
    assert errors[:first] == [0] * first
    assert all(error > 0 for error in errors[first:])
    # Growth is fitted over the blocks that an error reaches.
    depth = np.arange(first, 3)
    slope = np.polyfit(depth, np.log(errors[first:]), 1)[0]
    assert record.metrics["error/growth"] == pytest.approx(slope)
    assert record.metrics["error/last_block"] == errors[-1]
    slope = np.polyfit(depth, np.log(tokens[first:]), 1)[0]
    assert record.metrics["error/growth_token"] == pytest.approx(slope, rel=1e-3)
    for key in ("relative_error_heldout", "relative_error_token_heldout"):
        assert all(row[key] > 0 for row in rows[first:])


@pytest.mark.slow
def test_errors_of_the_default_model_equal_a_forward_of_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["method=rtn", "bits=4", "calibration.windows=1", "calibration.length=96"]
    words += ["eval=none", "tracker=none", f"results={tmp_path}"]
    models = kept(monkeypatch)
    config = plan_jobs(ROOT / "conf", words)[0]
    do(config)
    blocks = read_rows(config.directory / "blocks.jsonl")
    assert len(blocks) == 30
    whole, tokens = block_errors(*models[0])
    assert [row["relative_error"] for row in blocks] == pytest.approx(whole, rel=1e-4)
    assert [row["relative_error_token"] for row in blocks] == pytest.approx(tokens, rel=1e-4)
    reference, model, ids = models[0]
    rows = {row["name"]: row for row in read_rows(config.directory / "layers.jsonl")}
    assert len(rows) == 30 * 7
    inputs, inputs_hat = (entering(one, list(rows), ids) for one in (reference, model))
    for name, row in rows.items():
        x, x_hat = inputs[name], inputs_hat[name]
        w, v = (one.get_submodule(name).weight.double() for one in (reference, model))
        local = (x_hat @ (w - v).T).square().sum() / len(x)
        total = (x @ w.T - x_hat @ v.T).square().sum() / len(x)
        assert row["local_error"] == pytest.approx(local.item(), rel=1e-4), name
        assert row["total_error"] == pytest.approx(total.item(), rel=1e-4), name


Models = tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]


def kept(monkeypatch: pytest.MonkeyPatch) -> list[Models]:
    """The models of the runs to come, in full precision and quantised, and their tokens."""
    models: list[Models] = []
    quantize = pipeline.quantize

    def keeping(config, console, loaded, windows, *more):  # type: ignore[no-untyped-def]
        models.append((copy.deepcopy(loaded.model), loaded.model, windows["calibration"].ids))
        quantize(config, console, loaded, windows, *more)

    monkeypatch.setattr(pipeline, "quantize", keeping)
    return models


@pytest.mark.slow
@pytest.mark.real
def test_the_first_token_rules_the_middle_of_the_default_model() -> None:
    """Why the relative error falls at block 11 and rises at 28: docs/metrics.md."""
    model = AssetModel("smollm2_135m", "smollm2_135m").load().model
    ids = torch.from_numpy(np.load(GOLDEN / "reference_tokens.npz")["calibration"]).long()
    names = [f"model.layers.{index}" for index in range(30)]
    leaving = passing(model, names, ids)[1].values()
    squares = [one.square().sum(dim=-1) for one in leaving]
    shares = [(one[:, 0].sum() / one.sum()).item() for one in squares]
    assert min(shares[11:28]) > 0.8 and max(shares[11:21]) > 0.98
    assert max(*shares[:11], shares[29]) < 0.2


def block_errors(
    reference: torch.nn.Module, model: torch.nn.Module, ids: torch.Tensor
) -> tuple[list[float], list[float]]:
    """What leaves each block: ‖Y − Ŷ‖²/‖Y‖², and the mean of ‖y − ŷ‖²/‖y‖² over tokens."""
    names = [f"model.layers.{index}" for index in range(len(model.model.layers))]
    ours, theirs = (passing(one, names, ids)[1] for one in (model, reference))
    apart = [(theirs[name] - ours[name]).square().sum(dim=-1) for name in names]
    size = [theirs[name].square().sum(dim=-1) for name in names]
    pairs = list(zip(apart, size, strict=True))
    return [(e.sum() / s.sum()).item() for e, s in pairs], [
        (e / s).mean().item() for e, s in pairs
    ]


def entering(
    model: torch.nn.Module, names: list[str], ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What enters each module, ``[tokens, columns]``."""
    return {name: x.flatten(0, -2) for name, x in passing(model, names, ids)[0].items()}


def passing(
    model: torch.nn.Module, names: list[str], ids: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What enters and what leaves each module in one plain forward, float64."""
    inputs, outputs = {}, {}

    def watch(name):  # type: ignore[no-untyped-def]
        def hook(_, args, out):  # type: ignore[no-untyped-def]
            inputs[name] = args[0].double()
            outputs[name] = (out[0] if isinstance(out, tuple) else out).double()

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    with torch.inference_mode():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return inputs, outputs
