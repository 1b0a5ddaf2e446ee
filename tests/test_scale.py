"""What a run takes of a card: by the formula, by counted bytes, and in the table of docs/scale.md."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import rich.console
import standin
import tiny
from runs import CONF, ROOT, configured, do
from standin import Standin

from harness.command import cli, sketch
from harness.command.checks import checks, skeleton
from harness.command.cli import plan_jobs
from harness.command.console import Console
from harness.command.estimate import Estimator, dry_run
from harness.command.measure import card_here
from harness.command.on_device import COLUMNS, Job, best, cells
from harness.inputs.models import SHAPES, HubModel
from harness.planning import quantising_flops
from harness.settings.card import SPEEDS, Card
from harness.settings.config import Config, ConfigError
from harness.walk import live
from harness.walk.holding import Hold

pytestmark = pytest.mark.long  # whole walks and runs

PROFILED = ("dry_run=true", "device=cuda")
PARAMETERS = {  # that the hub counts in the checkpoints
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "tiiuae/falcon-180B": 179_522_565_120,
}
PAGE = ROOT / "docs" / "scale.md"


def even(speed: float = 1e12, memory: float = 80.0) -> Card:
    """A card with one speed for all and no time lost to memory and links."""
    return Card("even", memory, 1e12, 1e12, dict.fromkeys(SPEEDS, speed / 1e12))


def one(*more: str) -> Config:
    corpus = [] if any(word.startswith("calibration=") for word in more) else ["calibration=c4"]
    (config,) = plan_jobs(CONF, [*PROFILED, *corpus, *more])
    return config


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_shapes_have_the_parameters_of_the_checkpoints(name: str) -> None:
    model = HubModel(name).sketch()
    assert sum(part.numel() for part in model.parameters()) == PARAMETERS[name]
    assert all(part.is_meta for part in model.parameters())
    assert sorted(str(path.parent.relative_to(SHAPES)) for path in SHAPES.glob("*/*/*.json")) == (
        sorted(PARAMETERS)
    )


@pytest.mark.long
def test_the_page_has_the_table_that_its_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the bounds: a 7B within 40 GB, a 70B whose blocks come and go within 80 GB."""
    monkeypatch.setattr("harness.settings.config.contents_of", None)  # no input is looked at
    assert cli.main(print, CONF, ["-m", "experiment=scale"]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    start = next(at for at, line in enumerate(printed) if line.startswith("run "))
    table = printed[start : start + 13]
    text = PAGE.read_text(encoding="utf-8")
    assert "\n".join(["```", *table, "```"]) in text, "\n".join(table)
    rows = {tuple(line.split()[:2]): line.split() for line in table[1:]}
    assert len(rows) == 12
    small, large = (rows[f"llama2_{size}-gptq-w3-a0.5", "a100"] for size in ("7b", "70b"))
    assert float(small[3]) < 40 and "model.streaming=true" not in small
    assert float(large[3]) < 80 and large[-2:] == [
        "model.streaming=true",
        "calibration.hold=blocks",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["model=hf", "model.path=meta-llama/Llama-2-7b"],
         "model.path='meta-llama/Llama-2-7b': no config.json at hand; did you mean "
         "'meta-llama/Llama-2-7b-hf'?"),
        (["model=llama2_7b", "calibration=wikitext2", "calibration.windows=null"],
         "calibration.windows=null: all there are, which is not looked at with device_profile"),
        (["model=llama2_7b", "group_size=96"], "group_size=96: does not divide the 4096 input columns"),
        (["model=llama2_7b", "quantize.blocks=40:41"], "no linear is selected by"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_can_t_be_estimated_is_one_line(more: list[str], said: str) -> None:
    problem = next(checks([one("device_profile=a100", *more)]))
    assert problem.startswith(said) and "\n" not in problem


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["device=cuda"], "device_profile=a100: estimates a run, and is for dry_run=true"),
        (["dry_run=true"], "device_profile=a100: device=cpu is none; say device=cuda"),
        (["dry_run=true", "device=cuda", "method=none"], "device_profile=a100: method=none"),
        (["dry_run=true", "device=cuda", "device_profile.memory=0"], "device_profile.memory=0: "),
        (["dry_run=true", "device=cuda", "device_profile.tflops.float32=-1"],
         "device_profile.tflops.float32=-1: must be positive"),
    ],
    ids=str,
)  # fmt: skip
def test_a_card_that_is_not_there_is_for_estimates(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        plan_jobs(CONF, ["device_profile=a100", *given])


def test_a_sweep_is_estimated_for_cards_or_for_this_machine() -> None:
    pair = [one("model=llama2_7b"), one("model=llama2_7b", "device_profile=a100")]
    assert next(checks(pair)).startswith("device_profile=null: ")


def test_a_smaller_card_of_one_s_own_takes_another_way(tiny_folder: Path, tmp_path: Path) -> None:
    def mine(memory: float) -> Config:
        return configured(
            tiny_folder, tmp_path, *PROFILED, "device_profile=a100", "calibration.windows=64",
            "device_profile.name=mine", f"device_profile.memory={memory}", "eval.batch_tokens=16",
        )  # fmt: skip

    blocks = list(sketch.job(mine(1)).ways(even()))[1]
    config = mine(blocks.device / 0.89e9)  # a tenth stays free
    assert list(checks([config])) == []
    text = io.StringIO()
    sketch.dry_run([config], Console(rich.console.Console(file=text, soft_wrap=True)))
    row = next(line for line in text.getvalue().splitlines() if "mine" in line).split()
    assert row[1] == "mine" and row[-1] == "calibration.hold=blocks"
    assert not tmp_path.joinpath("local").exists()


def job(folder: Path, results: Path, *more: str) -> Job:
    config = configured(folder, results, *more)
    return Estimator()._job(config, skeleton(config))


def test_with_one_speed_for_all_time_is_that_of_the_counted_operations(
    tiny_folder: Path, tmp_path: Path
) -> None:
    for more in (["method=gptq"], ["method=rtn", "bits=auto", "budget=4.7"], ["qep.alpha=0"]):
        found = job(tiny_folder, tmp_path, "calibration.holdout=2", *more)
        tokens, heldout, own = found.windows
        counted = quantising_flops(
            found.config, found.model, found.chosen, tokens.shape, heldout.numel(), own.shape
        )
        parts = found.seconds(found._memory, "forwards", even(1e6))
        assert sum(parts.values()) == pytest.approx(sum(counted.values()) / 1e6)
        again = found.seconds(found._memory, "blocks", even(1e6))
        assert again.pop("forwards") > 1.5 * parts.pop("forwards") and again == parts


def test_ways_come_in_the_order_of_what_they_cost(tiny_folder: Path, tmp_path: Path) -> None:
    found = job(tiny_folder, tmp_path, "calibration.windows=64", "model.dtype=bfloat16")
    ways = list(found.ways(even()))
    assert [(way.hold, way.streaming) for way in ways] == [
        (hold, streaming) for streaming in (False, True) for hold in ("forwards", "blocks", "cpu")
    ]
    sizes = [way.device for way in ways[:3]]
    assert sizes == sorted(sizes, reverse=True) and ways[0].seconds < ways[1].seconds
    for way in ways[:3]:  # a card on which it just fits, nine tenths of what the weights leave
        weights = found._memory.weights
        room = weights + (way.device - weights) / 0.9
        assert best(list(found.ways(even(memory=room * 1.001 / 1e9)))).hold == way.hold
    none = list(found.ways(even(memory=1e-6)))
    assert cells(none, False)[-1] == "no"
    asked = job(tiny_folder, tmp_path, "calibration.hold=cpu", "model.streaming=true")
    assert [(way.hold, way.streaming) for way in asked.ways(even())] == [("cpu", True)]
    full = job(tiny_folder, tmp_path, "method=none")
    assert cells(list(full.ways(even())), False)[-1] == "yes"


def test_on_a_card_that_is_there_the_estimate_chooses_as_the_run_does(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("device=cuda:0", "method=rtn", "calibration.windows=32", "batch_tokens=16",
            "quantize.blocks=0:1", "eval.divergence=false", "baseline=false", "eval.windows=1",
            "eval.batch_tokens=16")  # fmt: skip
    monkeypatch.setattr(standin, "MEMORY", 650_000)
    card_here.cache_clear()
    with Standin():
        config = configured(tiny_folder, tmp_path, *more)
        text = io.StringIO()
        dry_run([config], Console(rich.console.Console(file=text, soft_wrap=True)))
        record = do(config)
    card_here.cache_clear()
    header, row, *_ = text.getvalue().partition("run ")[2].splitlines()
    assert header.split("TFLOP")[1].split() == " ".join(COLUMNS).split()
    assert row.split()[-1] == f"calibration.hold={record.summary['hold']}"
    assert record.summary["hold"] == "blocks" and "1 of 1 to do" in text.getvalue()


@pytest.mark.long
@pytest.mark.parametrize("hold", ["forwards", "blocks", "cpu"])
def test_the_bytes_of_a_run_are_those_of_the_estimate(
    hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Llama 2 7B at 1/64: width, MLP, heads' number, vocabulary, windows' length, columns at once.

    All terms of the formula shrink alike, so that it is as near to a 7B at 128 x 2048 tokens; but for the
    depth, which only adds weights. In bfloat16, as that is.
    """
    monkeypatch.setattr(live, "TOGETHER", live.TOGETHER // 64)
    shape = dict(hidden_size=64, intermediate_size=172, num_attention_heads=2, vocab_size=500)
    tiny.save(tmp_path, **shape, num_key_value_heads=2, num_hidden_layers=2)
    config = configured(
        tmp_path, tmp_path / "results", "device=cuda:0", "calibration.windows=128",
        "calibration.length=32", "batch_tokens=32", "model.dtype=bfloat16",
        f"calibration.hold={hold}", "eval.divergence=false", "baseline=false", "eval.windows=1",
        "eval.batch_tokens=16",
    )  # fmt: skip
    way = next(Estimator()._job(config, skeleton(config)).ways(even()))
    with Standin() as device:
        do(config)
    assert way.device == pytest.approx(device.peak, rel=0.1)
