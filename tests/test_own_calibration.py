"""calibration.awq: a method's search on tokens of its own, QEP's correction on those of calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import build
from runs import CONF, configured, do

from harness.command.cli import plan_jobs
from harness.inputs.corpora import LocalText
from harness.numerics.precision import forwards
from harness.numerics.statistics import collect
from harness.records.record import Record, read_rows
from harness.settings.config import Config, ConfigError
from harness.walk.architecture import plan
from harness.walk.walk import Moments, Walk

pytestmark = pytest.mark.long  # whole runs, or every composition

WANTED = Moments(cross=True, magnitude=True)


def tokens(seed: int, windows: int, length: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return list(torch.randint(4, 60, (windows, length), generator=draw).split(2))


def walked(family: str, own: list[torch.Tensor]) -> tuple[dict[str, list], dict[object, float]]:
    """The statistics of every stage of a walk that shrinks the weights, and the errors that it measured."""
    model = build(family).double()
    found, errors = {}, {}
    batches, heldout = tokens(1, 5, 12), tokens(2, 2, 12)
    with Walk(model, plan(model), batches, heldout, lambda _: WANTED, own=own) as walk:
        for stage in walk:
            found[stage.stage.leader] = [stage.statistics, stage.heldout, stage.own]
            passed = walk.advance({name: 0.9 * one for name, one in stage.weights.items()})
            for key, one in (passed.linears | passed.blocks).items():
                errors[key] = one.calibration.error + one.heldout.error
    return found, errors


def original_inputs(family: str, own: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What enters every linear of the original model, ``[tokens, in]``."""
    model = build(family).double()
    seen: dict[str, list[torch.Tensor]] = {}
    for linear in plan(model).linears:
        rows = seen.setdefault(linear.name, [])
        linear.module.register_forward_pre_hook(
            lambda _, args, rows=rows: rows.append(args[0].reshape(-1, args[0].shape[-1]))
        )
    with torch.inference_mode(), forwards(model):
        for batch in own:
            model(batch)
    return {name: torch.cat(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_its_statistics_are_those_of_the_full_precision_model(family: str) -> None:
    own = tokens(3, 3, 20)
    found, _ = walked(family, own)
    inputs = original_inputs(family, own)
    for leader, (_, _, mine) in found.items():
        direct = collect(inputs[leader], magnitude=True)
        assert mine.tokens == direct.tokens == 60
        assert mine.cross is None
        torch.testing.assert_close(mine.hessian, direct.hessian, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mine.magnitude, direct.magnitude, rtol=1e-10, atol=1e-12)


def test_nothing_else_changes() -> None:
    plain, before = walked("llama", [])
    found, after = walked("llama", tokens(3, 3, 20))
    assert before == after
    for leader, (calibration, heldout, own) in plain.items():
        assert own is None
        for one, other in zip((calibration, heldout), found[leader][:2], strict=True):
            assert torch.equal(one.hessian, other.hessian)
            assert torch.equal(one.cross, other.cross)


def awq(folder: Path, results: Path, *more: str) -> Config:
    words = ("method=awq", "model.dtype=float64", "eval.divergence=false", "baseline=false")
    return configured(folder, results, *words, *more)


def own(folder: Path, *more: str) -> list[str]:
    sizes = ("windows=4", "length=16", f"path={folder / 'text.txt'}", *more)
    return ["calibration@calibration.awq=text", *(f"calibration.awq.{one}" for one in sizes)]


def test_the_tokens_of_calibration_as_its_own_are_the_reference_stream(
    tiny_folder: Path, tmp_path: Path
) -> None:
    streams: dict[str, Record] = {
        stream: do(awq(tiny_folder, tmp_path, f"qep.statistics={stream}"))
        for stream in ("quantized", "reference")
    }
    record = do(awq(tiny_folder, tmp_path, *own(tiny_folder)))
    expected = streams["reference"].metrics
    assert record.metrics == pytest.approx(expected, rel=1e-9)
    assert record.metrics["perplexity/text"] != pytest.approx(
        streams["quantized"].metrics["perplexity/text"], rel=1e-6
    )


def test_a_run_records_and_saves_what_it_used(tiny_folder: Path, tmp_path: Path) -> None:
    more = own(tiny_folder, "windows=6", "length=24")
    config = awq(tiny_folder, tmp_path, "save_tokens=true", "cache.reference=true", *more)
    record = do(config)
    corpus = LocalText(str(tiny_folder / "text.txt"), None, 6, 24, sample=True)
    expected = corpus.tokens(config.model.tokenizer(), 0)
    assert record.hashes["calibration.awq"] == expected.hash != record.hashes["calibration"]
    assert record.summary["own_tokens"] == 6 * 24 and record.summary["calibration_tokens"] == 64
    assert record.config["calibration.awq"]["windows"] == 6
    saved = np.load(config.directory / "tokens.npz")
    assert saved["calibration.awq"].tolist() == expected.ids.tolist()
    plain = do(awq(tiny_folder, tmp_path))
    assert record.metrics["perplexity/text"] != plain.metrics["perplexity/text"]
    # The correction is that of the calibration tokens: the first stage's does not depend on the method.
    first, other = (read_rows(tmp_path / "local" / one.run / "layers.jsonl")[0]
                    for one in (record, plain))  # fmt: skip
    assert first["signal"] == pytest.approx(other["signal"]) and first["ridge"] == other["ridge"]
    again = do(awq(tiny_folder, tmp_path / "other", "cache.reference=true", *more))
    assert again.shared_flops > record.shared_flops == 0
    assert again.metrics == record.metrics and again.flops == record.flops


def test_other_methods_pass_over_it(tiny_folder: Path, tmp_path: Path) -> None:
    plain, other = (
        configured(tiny_folder, tmp_path, "method=gptq", *more) for more in ([], own(tiny_folder))
    )
    assert plain.run_id == other.run_id and other.own_calibration is None
    assert (
        awq(tiny_folder, tmp_path, *own(tiny_folder)).run_id != awq(tiny_folder, tmp_path).run_id
    )


def test_the_held_out_windows_are_those_of_calibration(tiny_folder: Path) -> None:
    (config,) = plan_jobs(
        CONF,
        [
            *("model=hf", f"model.path={tiny_folder / 'tiny'}", "method=awq", "eval=heldout"),
            *("calibration=text", f"calibration.path={tiny_folder / 'text.txt'}"),
            *("calibration.holdout=2", *own(tiny_folder)),
        ],
    )
    assert config.evaluators["perplexity"].corpora["heldout"].corpus == config.calibration
    assert config.own_calibration != config.calibration


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["calibration.awq=c4"], r"calibration\.awq='c4': no corpus; .*calibration@calibration\.awq="),
        (["calibration@calibration.awq=wiki", "calibration.awq.holdout=3"],
         r"calibration\.awq\.holdout=3: nothing is held out of a set of the method's own"),
        (["calibration@calibration.awq=wiki", "calibration.awq.windows=0"],
         r"calibration\.awq\.windows=0 \(at least 1\)"),
        (["calibration@calibration.awq=wikki"], "did you mean 'wiki'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(
    words: list[str], said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        awq(tiny_folder, tmp_path, *words)
    assert "\n" not in str(caught.value)
