"""The walk against plain forwards, on tiny random models of many families."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from families import FAMILIES, build
from torch import Tensor

from harness.numerics.statistics import collect
from harness.walk.architecture import parse_blocks, plan
from harness.walk.outputs import KeptOutputs, KnownOutputs, outputs_bytes
from harness.walk.walk import Moments, NonFiniteError, Walk

TOKENS, WINDOWS, LENGTH = 60, 4, 12


def batches(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(3, TOKENS, (WINDOWS, LENGTH), generator=generator).split(2))


def perturbed(weight: Tensor) -> Tensor:
    """A stand-in for quantisation: coarse enough to move every later activation."""
    step = weight.abs().max() / 3
    return torch.round(weight / step) * step


def logits(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_lossless_weights_leave_the_model_as_it_was(family: str) -> None:
    model = build(family)
    before = [logits(model, tokens) for tokens in batches()]
    chosen = plan(model)
    blocks: dict[int, float] = {}
    with Walk(model, chosen, batches()) as walk:
        for stage in walk:
            passed = walk.advance(stage.weights)
            for name, measured in passed.linears.items():
                assert measured.calibration.error == 0, name
            blocks |= {index: one.calibration.error for index, one in passed.blocks.items()}
    assert blocks == dict.fromkeys(range(len(chosen.blocks)), 0.0)
    for tokens, expected in zip(batches(), before, strict=True):
        assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_and_errors_equal_two_plain_models(family: str) -> None:
    """H, C, D and the total error of every linear, against a direct two-model forward."""
    reference, model = build(family), build(family)
    everything = Moments(cross=True, gap=True, magnitude=True)
    found, errors = {}, {}
    chosen = plan(model)
    with Walk(model, chosen, batches(), moments=lambda stage: everything) as walk:
        for stage in walk:
            for name in stage.weights:
                found[name] = stage.statistics
            passed = walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
            errors |= {name: one.calibration for name, one in passed.linears.items()}
    names = [linear.name for linear in chosen.linears]
    assert list(errors) == names
    x, y = record_linears(reference, names)
    x_hat, y_hat = record_linears(model, names)
    for name in names:
        direct = collect(x_hat[name], x[name], cross=True, gap=True, magnitude=True)
        for field in ("hessian", "cross", "gap", "magnitude"):
            ours, theirs = getattr(found[name], field), getattr(direct, field)
            # An entry that cancels is no better than the largest one is.
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(scale, 1e-6))
        expected = (y[name] - y_hat[name]).square().sum().item()
        assert errors[name].error == pytest.approx(expected, rel=1e-4, abs=1e-9)


def record_linears(
    model: torch.nn.Module, names: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = []
    for name in names:
        module = model.get_submodule(name)

        def keep(module, args, output, name=name):  # type: ignore[no-untyped-def]
            inputs[name].append(args[0].flatten(0, -2))
            outputs[name].append(output.flatten(0, -2).clone())  # may be overwritten

        hooks.append(module.register_forward_hook(keep))
    for tokens in batches():
        logits(model, tokens)
    for hook in hooks:
        hook.remove()
    return (
        {name: torch.cat(parts) for name, parts in inputs.items()},
        {name: torch.cat(parts) for name, parts in outputs.items()},
    )


def test_every_block_runs_once_per_stream_and_batch() -> None:
    model, calls = build("llama"), Counter[int]()
    chosen = plan(model)
    for index, block in enumerate(chosen.blocks):
        block.register_forward_pre_hook(lambda *args, index=index: calls.update([index]))
    with Walk(model, chosen, batches(), batches(1)) as walk:
        for stage in walk:
            walk.advance({name: perturbed(weight) for name, weight in stage.weights.items()})
    assert calls == dict.fromkeys(range(len(chosen.blocks)), 2 * 2 * len(batches()))


def test_heldout_batches_are_measured_but_do_not_feed_the_statistics() -> None:
    plain, both = {}, {}
    for into, heldout in ((plain, []), (both, batches(1))):
        model = build("llama")
        with Walk(model, plan(model), batches(), heldout) as walk:
            for stage in walk:
                into[stage.stage.leader] = stage.statistics.hessian
                assert (stage.heldout is None) == (not heldout)
                passed = walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
                for one in passed.linears.values():
                    assert (one.heldout.tokens > 0) == bool(heldout)
    for name, hessian in plain.items():
        assert torch.equal(hessian, both[name])


def quantised_walk(family: str, threads: int, decided=None, outputs=None):
    """Hessians by leader, total errors, block errors and the weights of a walk."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    model, hessians, passed = build(family), {}, {}
    try:
        with Walk(
            model, plan(model), batches(), batches(1), decided=decided, outputs=outputs
        ) as walk:
            for stage in walk:
                hessians[stage.stage.leader] = stage.statistics.hessian
                done = walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
                passed |= done.linears | done.blocks
    finally:
        assert torch.get_num_threads() == threads  # as before the walk
        torch.set_num_threads(before)
    return hessians, passed, model.state_dict()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_threads_share_the_batches(family: str) -> None:
    alone, together = (quantised_walk(family, threads) for threads in (1, 2))
    for name, hessian in alone[0].items():
        torch.testing.assert_close(hessian, together[0][name])
    for key, measured in alone[1].items():
        for side in ("calibration", "heldout"):
            one, other = getattr(measured, side), getattr(together[1][key], side)
            assert one.error == pytest.approx(other.error) and one.tokens == other.tokens
    assert all(torch.equal(one, together[2][name]) for name, one in alone[2].items())


def test_an_error_on_a_thread_reaches_the_caller() -> None:
    model, before = build("llama"), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            model.get_parameter("model.layers.1.input_layernorm.weight")[3] = float("nan")
        with pytest.raises(NonFiniteError), Walk(model, plan(model), batches()) as walk:
            for stage in walk:
                walk.advance(stage.weights)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_with_decided_weights_goes_on_bit_for_bit(family: str) -> None:
    hessians, passed, weights = quantised_walk(family, 1)
    chosen = plan(build(family))
    first = [one for one in chosen.linears if one.block == 0]
    decided = {one.name: perturbed(one.weight()) for one in first}
    later, passed_later, same = quantised_walk(family, 1, decided)
    assert list(later) == [name for name in hessians if name not in decided]
    assert all(torch.equal(hessian, hessians[name]) for name, hessian in later.items())
    assert all(passed_later[key] == one for key, one in passed.items() if key not in decided)
    assert all(torch.equal(weight, same[name]) for name, weight in weights.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_recorded_reference_stream_gives_the_same_bits(family, threads, tmp_path) -> None:
    plain = quantised_walk(family, threads)
    writing = KeptOutputs(tmp_path, unexpected)
    written = quantised_walk(family, threads, outputs=writing)
    size = outputs_bytes(plan(build(family)).linears, [*batches(), *batches(1)])
    assert writing.complete(size) and not writing.complete(size + 1)
    read = quantised_walk(family, threads, outputs=KnownOutputs(tmp_path, unexpected))
    again = quantised_walk(family, threads, outputs=KnownOutputs(tmp_path, unexpected))
    for other in (written, read, again):
        assert all(torch.equal(value, other[0][name]) for name, value in plain[0].items())
        assert other[1] == plain[1]
        assert all(torch.equal(value, other[2][name]) for name, value in plain[2].items())


def unexpected(error: Exception) -> None:
    raise AssertionError("the disk is as it should be") from error


@pytest.mark.parametrize("harm", ["cut", "flipped", "swapped", "gone", "a folder"])
def test_a_damaged_recording_costs_work_and_no_bit(harm, tmp_path) -> None:
    plain = quantised_walk("llama", 2)
    quantised_walk("llama", 2, outputs=KeptOutputs(tmp_path, unexpected))
    path = sorted(tmp_path.iterdir())[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 if harm == "flipped" else 0
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm == "swapped":
        path.write_bytes((tmp_path / "00000.bin").read_bytes())
    elif harm != "gone":
        path.write_bytes(content[:-8] if harm == "cut" else content)
    told: list[Exception] = []
    reading = KnownOutputs(tmp_path, told.append)
    read = quantised_walk("llama", 2, outputs=reading)
    assert len(told) == 1 and path.name in str(told[0])
    assert all(torch.equal(value, read[0][name]) for name, value in plain[0].items())
    assert read[1] == plain[1]


def test_stages_are_the_linears_that_read_one_tensor() -> None:
    stages = plan(build("llama")).stages
    roles = [tuple(one.name.rsplit(".", 1)[1] for one in stage.linears) for stage in stages[:4]]
    assert roles == [
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    ]


def test_parallel_blocks_share_the_statistics_of_their_common_input() -> None:
    stages = plan(build("phi")).stages
    fc1 = next(stage for stage in stages if stage.leader.endswith("fc1"))
    assert fc1.source is not None
    assert stages[fc1.source].leader.endswith("q_proj")


def test_only_selected_blocks_are_quantised_and_all_are_measured() -> None:
    model, original = build("llama"), build("llama")
    chosen = plan(model, blocks="0:1", exclude=("*.k_proj",))
    measured = {}
    with Walk(model, chosen, batches()) as walk:
        for stage in walk:
            passed = walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
            measured |= passed.blocks
    changed = {
        name
        for name, weight in model.named_parameters()
        if not torch.equal(weight, original.get_parameter(name))
    }
    assert changed == {f"{linear.name}.weight" for linear in chosen.linears}
    assert all(".layers.0." in name and "k_proj" not in name for name in changed)
    assert set(measured) == set(range(len(chosen.blocks)))
    assert all(one.calibration.error > 0 for one in measured.values())


def test_an_exception_between_stages_leaves_a_model_that_still_works() -> None:
    model = build("llama")
    expected = logits(model, batches()[0])
    with pytest.raises(KeyError), Walk(model, plan(model), batches()) as walk:
        for _ in walk:
            raise KeyError("between stages")
    assert torch.equal(logits(model, batches()[0]), expected)


def test_activations_that_are_not_finite_name_the_linear() -> None:
    model = build("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.input_layernorm.weight")[3] = float("inf")
    with (
        pytest.raises(NonFiniteError, match=r"enter model\.layers\.1\.self_attn\.q_proj"),
        Walk(model, plan(model), batches()) as walk,
    ):
        for stage in walk:
            walk.advance(stage.weights)


@pytest.mark.parametrize("text", ["3", "a:b", "1:2:3"])
def test_block_ranges_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match=r"want first:last"):
        parse_blocks(text)


def test_advancing_is_not_optional() -> None:
    model = build("llama")
    with Walk(model, plan(model), batches()) as walk:
        stages = iter(walk)
        next(stages)
        with pytest.raises(RuntimeError, match="advance"):
            next(stages)
