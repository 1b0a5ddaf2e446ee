"""Forwards that wait elsewhere: the same bits, on the host and on a device, and less memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import pytest
import standin
import torch
from families import FAMILIES, build
from runs import configured, quiet_console
from standin import CUDA, Labelled, Standin, uncounted
from test_walk import batches, logits, perturbed, unexpected
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from harness import pipeline
from harness.layer import make_method
from harness.numerics.device import Courier
from harness.numerics.propagation import Propagation
from harness.numerics.statistics import Accumulator, collect
from harness.recipe import quantize_stage
from harness.settings.axes import Axes
from harness.settings.config import ConfigError
from harness.walk.architecture import plan
from harness.walk.experts import unfused
from harness.walk.holding import Hold
from harness.walk.live import Load, Memory, passing, waiting
from harness.walk.outputs import KeptOutputs, KnownOutputs, outputs_bytes
from harness.walk.residual import with_writers
from harness.walk.streaming import stream_blocks
from harness.walk.walk import Moments, Walk

pytestmark = pytest.mark.long  # whole walks and runs

HOLDS: tuple[Hold, ...] = get_args(Hold)


def walked(family: str, hold: Hold, **options: Any) -> tuple[Any, ...]:
    """Statistics by leader, what was measured, and the weights of a walk with all that it can sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(options.pop("threads", 1))
    model, found, passed, routing = unfused(build(family)), {}, {}, {}
    chosen = with_writers(model, plan(model, exclude=options.pop("exclude", ())))
    try:
        with Walk(
            model, chosen, batches(), batches(1),
            lambda stage: Moments(cross=True, gap=True, residual=stage.stream is not None),
            own=batches(2)[:1], hold=hold, **options,
        ) as walk:  # fmt: skip
            for stage in walk:
                one = stage.statistics
                found[stage.stage.leader] = [
                    one.hessian, one.cross, one.gap, one.residual, stage.own.hessian,
                    *stage.weights.values(),
                ]  # fmt: skip
                if stage.pool is not None:
                    found[stage.stage.leader].append(stage.pool()["calibration"].hessian)
                done = walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
                for linear in stage.stage.linears:  # is in place, and can be saved
                    assert torch.equal(linear.weight(), perturbed(stage.weights[linear.name]))
                passed |= done.linears | done.blocks
                routing |= done.routing
    finally:
        torch.set_num_threads(threads)
    return found, passed, routing, model.state_dict(), logits(model, batches()[0])


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral", "lfm2"])
def test_blocks_that_run_again_give_the_same_bits(family: str) -> None:
    assert equal(walked(family, "forwards"), walked(family, "blocks"))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_so_do_threads_decided_weights_and_known_outputs(family: str, tmp_path: Path) -> None:
    exclude = ["*.v_proj", "*.1.*"]  # and blocks that are left as they are
    plain = walked(family, "forwards", threads=2, exclude=exclude)
    assert equal(plain, walked(family, "blocks", threads=2, exclude=exclude))
    model = unfused(build(family))
    first = [one for one in plan(model).linears if one.block == 0 or "self_attn" in one.name]
    decided = {one.name: perturbed(one.weight()) for one in first if one.block < 2}
    both = [walked(family, hold, decided=decided) for hold in ("forwards", "blocks")]
    assert equal(*both)
    kept = walked(family, "blocks", outputs=KeptOutputs(tmp_path, unexpected))
    every = [*batches(), *batches(1), *batches(2)[:1]]
    assert KeptOutputs(tmp_path, unexpected).complete(
        outputs_bytes(plan(model).linears, every)
    ) or (family == "mixtral")
    known = KnownOutputs(tmp_path, unexpected)
    assert equal(kept, walked(family, "blocks", outputs=known))
    assert equal(kept, walked(family, "forwards")) and known.flops() > 0


def test_on_a_device_all_wait_alike_and_hold_less() -> None:
    results, most = [], {}
    for hold in HOLDS:
        with Standin() as device:
            model = build("llama").to("cuda:0")
            found, peak = {}, 0
            before = device.live
            with Walk(model, plan(model), batches(), batches(1), hold=hold) as walk:
                for stage in walk:
                    peak = max(peak, device.live - before)
                    found[stage.stage.leader] = stage.statistics.hessian
                    done = walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
                    found |= {
                        key: torch.tensor(one.heldout.error) for key, one in done.linears.items()
                    }
            most[hold] = peak
            with uncounted():
                results.append({
                    key: one.inner if isinstance(one, Labelled) else one
                    for key, one in found.items()
                })  # fmt: skip
            assert all(one.device == CUDA for one in model.parameters())
    assert equal(results[0], results[1]) and equal(results[0], results[2])
    assert most["forwards"] > most["blocks"] > most["cpu"]


LOAD = Load(calibration=8, heldout=4, own=2, length=24, batch=2)


@pytest.mark.parametrize(
    ("family", "dtype", "attention"),
    [
        ("llama", torch.float32, "sdpa"),
        ("llama", torch.bfloat16, "eager"),
        ("qwen3", torch.float32, "sdpa"),
        ("mistral", torch.float32, "sdpa"),
        ("falcon", torch.float32, "sdpa"),
    ],
)
@pytest.mark.parametrize("hold", HOLDS)
def test_what_a_device_holds_at_a_stage_is_what_the_formula_says(
    hold: Hold, family: str, dtype: torch.dtype, attention: str
) -> None:
    with Standin() as device:
        model = build(family, attn_implementation=attention).to(dtype).to("cuda:0")
        ids = torch.randint(3, 64, (14, LOAD.length)).split(2)
        chosen = plan(model)
        wanted = [Moments(cross=one.index % 2 == 0, gap=True) for one in chosen.stages]
        memory = Memory(model, chosen, wanted, LOAD, dtype)
        walk = Walk(
            model, chosen, ids[:4], ids[4:6], lambda one: wanted[one.index], own=ids[6:], hold=hold
        )
        with walk:
            for stage in walk:
                expected = memory.at(stage.stage, hold).total
                assert device.live == pytest.approx(expected, rel=0.05), stage.stage.leader
                walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
        assert device.peak <= memory.most(hold)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_every_lane_has_the_sums_that_the_formula_counts(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 windows in 4 batches, one of them held out and one the method's own."""
    made: list[int] = []

    class Counted(Accumulator):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            sums = (self.hessian, self.cross, self.gap, self.residual)
            made.append(sum(one.numel() for one in sums if one is not None))

    monkeypatch.setattr("harness.walk.walk.Accumulator", Counted)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = build("llama")
        chosen = with_writers(model, plan(model))
        wanted = [
            Moments(cross=one.index % 2 == 0, residual=one.stream is not None)
            for one in chosen.stages
        ]
        load = Load(calibration=4, heldout=2, own=2, length=LOAD.length, batch=2)
        memory = Memory(model, chosen, wanted, load, torch.float32)
        ids = torch.randint(3, 64, (8, LOAD.length)).split(2)
        assert load.batches == len(ids) and load.forwards == 7
        with Walk(
            model, chosen, ids[:2], ids[2:3], lambda one: wanted[one.index], own=ids[3:]
        ) as walk:
            for stage in walk:
                assert sum(made) == min(threads, 4) * memory.sums(stage.stage)
                made.clear()
                walk.advance(stage.weights)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("hold", HOLDS)
def test_what_a_device_holds_of_a_streamed_model_is_two_blocks(hold: Hold, tmp_path: Path) -> None:
    with Standin() as device:
        model = build("llama", num_hidden_layers=4)
        stream_blocks(model, Courier(CUDA), tmp_path)
        chosen, ids = plan(model), torch.randint(3, 64, (8, LOAD.length)).split(2)
        load = Load(calibration=8, length=LOAD.length, batch=2)
        memory = Memory(model, chosen, [Moments()] * len(chosen.stages), load, torch.float32, True)
        assert device.live == memory.resting
        with Walk(model, chosen, ids, hold=hold) as walk:
            for stage in walk:
                if stage.stage.block < 3:  # no other comes after the last
                    while device.live < memory.at(stage.stage, hold).total * 0.95:
                        time.sleep(0.001)  # the next block is on its way
                expected = memory.at(stage.stage, hold).total
                assert device.live <= 1.05 * expected, stage.stage.leader
                walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
        assert device.peak <= memory.most(hold)


@pytest.mark.parametrize("method", ["rtn", "gptq", "quantease"])
@pytest.mark.parametrize("shape", [(48, 384), (192, 192), (1024, 128), (16, 512)])
def test_correcting_and_rounding_take_no_more_than_the_formula_says(
    method: str, shape: tuple[int, int]
) -> None:
    rows, columns = shape
    problems: list[str] = []
    recipe = Axes().recipe(make_method(method, {}, problems), "layer")
    assert not problems
    with Standin() as device:
        weight, inputs = torch.randn(shape).to(CUDA), torch.randn(256, columns).to(CUDA)
        statistics = collect(inputs + 0.1, inputs, cross=True)
        before = device.live
        device.peak = before
        corrected = Propagation(alpha=0.5).correct({"layer": weight}, statistics, None, [])
        quantize_stage({"layer": recipe}, {"layer": corrected["layer"].weight}, statistics)
        taken = device.peak - before
    assert taken <= passing(rows, columns, 4)
    assert taken > passing(rows, columns, 4) / 4


def skeleton(**changes: int) -> PreTrainedModel:
    """A Llama without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            LlamaConfig(**changes), dtype=torch.bfloat16
        ).eval()


def test_the_papers_models_fit_their_cards() -> None:
    """128 windows of 2,048 tokens: a 7B within 40 GB, a 70B whose blocks come and go within 80 GB."""
    small = skeleton()
    wide = skeleton(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8,
    )  # fmt: skip
    found = {}
    for name, model, streaming in (("7B", small, False), ("70B", wide, True)):
        chosen = plan(model)
        wanted = [Moments(cross=True) for _ in chosen.stages]
        memory = Memory(model, chosen, wanted, Load(128), torch.bfloat16, streaming)
        found[name] = {hold: memory.most(hold) / 1e9 for hold in HOLDS}
        assert memory.fitting(None) == memory.fitting(200 * 10**9) == "forwards"
        assert memory.fitting(10**9) == "cpu"
    assert found["7B"]["blocks"] < 40 < found["7B"]["forwards"] < 80
    assert found["70B"]["blocks"] < 80 < found["70B"]["forwards"]
    assert all(one["cpu"] < one["blocks"] for one in found.values())


def test_a_run_chooses_by_the_free_memory_and_says_so(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (
        "baseline=false", "eval.divergence=false", "method=rtn", "quantize.blocks=0:1",
        "calibration.windows=32", "batch_tokens=16",
    )  # fmt: skip
    runs = {}
    for place, memory in (("large", 10**9), ("small", 600_000), ("none", 1000)):
        monkeypatch.setattr(standin, "MEMORY", memory)
        console, text = quiet_console()
        with Standin():
            config = configured(tiny_folder, tmp_path / place, "device=cuda:0", *more)
            record = pipeline.run(config, console)
        runs[place] = record.summary["hold"], record.run, record.metrics
        assert f"calibration.hold={record.summary['hold']} (" in text.getvalue()
    assert [hold for hold, *_ in runs.values()] == list(HOLDS)
    assert runs["large"][1:] == runs["small"][1:] == runs["none"][1:]  # one run, one figure
    console, text = quiet_console()
    plain = configured(tiny_folder, tmp_path / "cpu", *more)
    assert pipeline.run(plain, console).summary["hold"] == "forwards"
    assert "hold" not in text.getvalue()
    with pytest.raises(ConfigError, match="calibration.hold='block': .*did you mean 'blocks'"):
        configured(tiny_folder, tmp_path, "calibration.hold=block")


def test_eager_attention_on_a_device_is_named_with_its_cost() -> None:
    model = build("llama", attn_implementation="eager")
    chosen = plan(model)
    memory = Memory(
        model, chosen, [Moments()] * len(chosen.stages), Load(4, length=16), model.dtype
    )
    said = list(waiting(memory, "forwards", CUDA))
    cost = 2 * 4 * 16**2 * 4 * (1 + 4)
    assert len(said) == 2 and f"{cost / 1e9:.3g} GB" in said[1]
    assert not list(waiting(memory, "forwards", torch.device("cpu")))
