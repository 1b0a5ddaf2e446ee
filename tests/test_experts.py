"""Mixtures: experts as linears, routing replayed, experts that few tokens reach."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import decoders
import pytest
import tiny
import torch
from families import build
from runs import configured, do
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.numerics.propagation import Propagation
from harness.numerics.statistics import Statistics, collect
from harness.starving import fed
from harness.walk.architecture import plan
from harness.walk.cost import forward_flops
from harness.walk.experts import unfused
from harness.walk.outputs import KeptOutputs, KnownOutputs, outputs_bytes, sized
from harness.walk.probe import decoder_blocks
from harness.walk.walk import Moments, Walk

EVERYTHING = Moments(cross=True, gap=True, magnitude=True)
# Plain, transposed and interleaved with biases, without a gate.
LAYOUTS = ("mixtral", "gpt_oss", "nemotron_h")


def batches(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(3, 60, (4, 12), generator=generator).split(2))


def logits(model: nn.Module) -> list[Tensor]:
    with torch.inference_mode():
        return [model(input_ids=tokens, use_cache=False).logits for tokens in batches()]


def perturbed(weight: Tensor) -> Tensor:
    step = weight.abs().max() / 3
    return torch.round(weight / step) * step


@pytest.mark.parametrize("family", LAYOUTS)
def test_experts_as_linears_compute_what_fused_ones_do(family: str) -> None:
    model = decoders.build(family)
    model.set_experts_implementation("eager")
    expected, count = logits(model), sum(one.numel() for one in model.parameters())
    assert unfused(model) is model
    assert all(map(torch.equal, logits(model), expected))
    assert sum(one.numel() for one in model.parameters()) == count  # views, none added or lost


def test_a_dense_model_is_not_touched() -> None:
    model = build("llama")
    modules = list(model.modules())
    assert list(unfused(model).modules()) == modules


def mixture() -> PreTrainedModel:
    return unfused(build("mixtral"))


def test_streams_pair_token_by_token() -> None:
    """With other weights everywhere, each expert has the same tokens in both streams, and H, C, D, the
    total error and the agreement are those of two models that share their choices.
    """
    reference, model = mixture(), mixture()
    found: dict[str, Statistics] = {}
    errors, agreed = {}, {}
    with Walk(model, plan(model), batches(), moments=lambda _: EVERYTHING) as walk:
        for stage in walk:
            found |= dict.fromkeys(stage.weights, stage.statistics)
            passed = walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
            errors |= {name: one.calibration for name, one in passed.linears.items()}
            agreed |= passed.routing
    x, chosen = watched(reference, None)
    x_hat, own = watched(model, chosen)
    for name, statistics in found.items():
        assert len(x[name]) == len(x_hat[name]) == statistics.tokens
        direct = collect(x_hat[name], x[name], cross=True, gap=True)
        for field in ("hessian", "cross", "gap"):
            ours, theirs = getattr(statistics, field), getattr(direct, field)
            torch.testing.assert_close(
                ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item()
            )
        one, other = (m.get_parameter(f"{name}.weight") for m in (reference, model))
        expected = (x[name] @ one.T - x_hat[name] @ other.T).square().sum().item()
        assert errors[name].error == pytest.approx(expected, rel=1e-4)
    for block, by_kind in agreed.items():
        pairs = [(chosen[key], own[key]) for key in chosen if key[0].endswith(f".{block}")]
        same = sum(int((a[..., None] == b[..., None, :]).any(-1).sum()) for a, b in pairs)
        assert by_kind["calibration"].same == same
        assert by_kind["calibration"].choices == sum(a.numel() for a, _ in pairs)
        assert by_kind["calibration"].borrowed == 0
    assert any(one["calibration"].share < 1 for one in agreed.values())


Chosen = dict[tuple[str, int], Tensor]


def watched(model: PreTrainedModel, given: Chosen | None) -> tuple[dict[str, Tensor], Chosen]:
    """What every linear of a plan reads, and the experts that the model would choose by itself.

    With ``given`` it takes those instead, with the values that its own router has for them.
    """
    inputs: dict[str, list[Tensor]] = {}
    free: Chosen = {}
    number = 0

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args: inputs.setdefault(name, []).append(args[0].flatten(0, -2))

    def routed(name: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> tuple:
            scores, _, index = output
            free[name, number] = index
            if given is not None:
                index = given[name, number]
            values = scores.softmax(-1).gather(-1, index)
            return scores, values / values.sum(-1, keepdim=True), index

        return hook

    hooks = [
        one.module.register_forward_pre_hook(keep(one.name)) for one in plan(model).linears
    ] + [
        model.get_submodule(f"{name}.mlp.gate").register_forward_hook(routed(name))
        for name in decoder_blocks(model)
    ]
    for number, tokens in enumerate(batches()):  # noqa: B007  read by the hooks
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in inputs.items()}, free


def test_experts_with_few_tokens_get_statistics_of_their_layer() -> None:
    model = unfused(build("mixtral", num_experts_per_tok=1))
    with (
        torch.no_grad()
    ):  # a mean is never the largest: no token chooses expert 3 of the first block
        gate = model.get_parameter("model.layers.0.mlp.gate.weight")
        gate[3] = gate[:3].mean(0)
    few = 0
    with Walk(model, plan(model), batches(), batches(1), lambda _: EVERYTHING) as walk:
        for stage in walk:
            given = fed(stage, 10_000)
            tokens = stage.statistics.tokens
            if stage.stage.linears[0].mixture is None:
                assert given.fallback is None and given.inputs is stage
            elif stage.pool is not None:
                everything = stage.pool()["calibration"]
                assert given.fallback == "blended" and everything.tokens == 48
                part = tokens / 10_000
                for field in ("hessian", "cross", "gap", "magnitude"):
                    mine, all_of_them = (
                        getattr(stage.statistics, field),
                        getattr(everything, field),
                    )
                    torch.testing.assert_close(
                        getattr(given.inputs.statistics, field),
                        part * mine + (1 - part) * all_of_them,
                    )
            else:
                columns = stage.statistics.columns
                assert given.fallback == "rounded"
                assert torch.equal(given.inputs.statistics.hessian, torch.eye(columns))
                corrected = given.correct(Propagation(alpha=1.0))
                for name, one in corrected.items():
                    assert one.alpha == 0 and torch.equal(one.weight, stage.weights[name])
            assert fed(stage, 1).fallback in (None, "blended" if stage.pool else "rounded")
            assert (fed(stage, 1).fallback is None) == (tokens > 0)
            few += tokens == 0
            assert all(map(torch.isfinite, [stage.statistics.hessian.sum()]))
            walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
    assert few == 2  # both projections of an expert without a token


def test_known_outputs_of_experts_give_the_same_bits(tmp_path: Path) -> None:
    def walked(outputs: object) -> dict[str, Tensor]:
        model = mixture()
        with Walk(model, plan(model), batches(), outputs=outputs) as walk:  # type: ignore[arg-type]
            for stage in walk:
                walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
        return model.state_dict()

    def fault(error: Exception) -> None:
        raise AssertionError(error)

    chosen = plan(mixture())
    keeping = KeptOutputs(tmp_path, fault)
    first = walked(keeping)
    assert sized(chosen) and keeping.complete(outputs_bytes(chosen.linears, batches()))
    second = walked(KnownOutputs(tmp_path, fault))
    assert all(torch.equal(one, second[name]) for name, one in first.items())
    assert not sized(plan(mixture(), exclude=["*.experts.0.*"]))


def test_routers_stay_unless_they_are_named() -> None:
    model = unfused(decoders.build("qwen2_moe"))
    gates = {f"model.layers.{index}.mlp.shared_expert_gate" for index in range(2)}
    assert gates <= {one.name for one in plan(model).kept}
    named = plan(model, include=["*", "*.shared_expert_gate"])
    assert gates <= {one.name for one in named.linears}


def test_a_token_meets_the_experts_that_it_chooses() -> None:
    model = mixture()
    attention = 2 * (32 * 32 + 32 * 16) + 4 * 32  # of a block, and its router
    experts = 2 * (3 * 32 * 48)  # two of four
    with torch.device("meta"):
        bare = unfused(type(model)(model.config))
    for one in (model, bare):
        assert forward_flops(one, 10, 0) == 2 * 10 * 3 * (attention + experts)


def test_a_whole_run_says_what_was_done(tmp_path: Path) -> None:
    build("mixtral").save_pretrained(tmp_path / "tiny")
    tiny.tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("\n\n".join(tiny.sentences(400, seed=1)), encoding="utf-8")
    options = ("experts.min_tokens=24", "calibration.holdout=2", "qep.alpha=auto", "qep.skip=[]")
    config = configured(tmp_path, tmp_path / "results", *options)
    record = do(config)
    rows = [json.loads(line) for line in (config.directory / "layers.jsonl").open()]
    experts = [row for row in rows if "experts" in row["name"]]
    few = [row for row in experts if row["tokens"] < 24]
    assert few and {row["fallback"] for row in few} == {"blended", "rounded"}
    assert all(row["fallback"] is None for row in experts if row["tokens"] >= 24)
    assert sum(record.summary["starved"].values()) == len(few) < len(experts)
    for block in range(3):  # two experts a token
        first = [r for r in experts if r["block"] == block and r["role"] == "gate_up_proj"]
        assert sum(row["tokens"] for row in first) == 2 * record.summary["calibration_tokens"]
    assert 0 < record.metrics["routing/agreement"] <= 1
    assert all(math.isfinite(value) for value in record.metrics.values())
    kept = record.full_precision
    assert kept["model.layers.*.mlp.gate.weight"]["why"] == "no linear's weight"
    weights = sum(row["rows"] * row["columns"] for row in rows)
    left = sum(one["weights"] for one in kept.values())
    assert sum(one["share"] for one in kept.values()) == pytest.approx(left / (left + weights))
    bits = record.bits_per_weight * weights + 32 * left
    assert record.bits_per_parameter == pytest.approx(bits / (weights + left))


def test_a_walk_with_decided_weights_goes_on_bit_for_bit() -> None:
    """As a run does from a checkpoint; the agreement of later blocks is the same as well."""

    def walked(decided: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[int, object], object]:
        model, hessians, routing = mixture(), {}, {}
        with Walk(model, plan(model), batches(), decided=decided) as walk:
            for stage in walk:
                hessians[stage.stage.leader] = stage.statistics.hessian
                routing |= walk.advance(
                    {n: perturbed(w) for n, w in stage.weights.items()}
                ).routing
        return hessians, routing, model.state_dict()

    whole, routing, weights = walked({})
    first = [one for one in plan(mixture()).linears if one.block == 0]
    later, routing_later, same = walked({one.name: perturbed(one.weight()) for one in first})
    assert 0 < len(later) < len(whole)
    assert all(torch.equal(hessian, whole[name]) for name, hessian in later.items())
    assert routing_later == routing
    assert all(torch.equal(one, same[name]) for name, one in weights.items())
