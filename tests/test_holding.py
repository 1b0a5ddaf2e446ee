"""Forwards that wait elsewhere: the same bits, on the host and on a device, and less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from families import FAMILIES, build
from standin import CUDA, Labelled, Standin, uncounted
from test_walk import batches, logits, perturbed, unexpected

from harness.walk.architecture import plan
from harness.walk.experts import unfused
from harness.walk.holding import Hold
from harness.walk.outputs import KeptOutputs, KnownOutputs, outputs_bytes
from harness.walk.residual import with_writers
from harness.walk.walk import Moments, Walk

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
