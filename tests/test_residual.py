"""The residual stream as the target of a correction, and which linears write to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, build
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import instance
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from harness.numerics.propagation import Propagation, correction, missing
from harness.numerics.statistics import collect
from harness.walk.architecture import Plan, plan
from harness.walk.cost import errors_flops
from harness.walk.residual import with_writers, writers
from harness.walk.walk import Moments, Walk


def streams(seed=0, rows=8, columns=12, tokens=200, mismatch=0.3):
    """W, X̂, X and the streams R̂, R ``[tokens, rows]`` that the output is added to, in float64."""
    weight, inputs, reference = (
        one.double() for one in instance(rows, columns, tokens, seed=seed, mismatch=mismatch)
    )
    source = torch.Generator().manual_seed(seed + 1)
    stream = torch.randn(tokens, rows, generator=source, dtype=torch.float64)
    # what the stream has lost hangs on the inputs, as it does in a model
    mix = torch.randn(columns, rows, generator=source, dtype=torch.float64)
    changed = stream - 0.3 * inputs @ mix / columns**0.5 - 0.1 * torch.randn_like(stream)
    return weight, inputs, reference, changed, stream


def error(weight, value, inputs, reference, changed, stream):
    """‖(R + W X) − (R̂ + V X̂)‖² / T from raw activations."""
    apart = stream + reference @ weight.T - changed - inputs @ value.T
    return (apart.square().sum() / len(inputs)).item()


def of(weight, inputs, reference, changed, stream):
    return collect(inputs, reference, stream - changed, cross=True, gap=True)


def test_k_is_the_mean_of_outer_products():
    weight, inputs, reference, changed, stream = streams(tokens=40)
    expected = sum(
        torch.outer(r - q, x) for r, q, x in zip(stream, changed, inputs, strict=True)
    ) / len(inputs)
    torch.testing.assert_close(of(weight, inputs, reference, changed, stream).residual, expected)
    statistics = of(weight, inputs, reference, changed, stream)
    torch.testing.assert_close(missing(weight, statistics), weight @ statistics.cross + expected)


@pytest.mark.parametrize("rows", [8, 20])
def test_alpha_one_without_damping_is_least_squares(rows):
    """The V of least ‖(R + W X) − (R̂ + V X̂)‖² is lstsq of R − R̂ + W X on X̂."""
    case = streams(rows=rows)
    weight, inputs, reference, changed, stream = case
    propagation = Propagation(alpha=1.0, damping=0.0, target="residual")
    found = propagation.correct({"w": weight}, of(*case), writers=["w"])["w"]
    wanted = stream - changed + reference @ weight.T
    expected = torch.linalg.lstsq(inputs, wanted).solution.T
    torch.testing.assert_close(found.weight, expected, rtol=1e-8, atol=1e-10)
    assert (found.target, found.alpha) == ("residual", 1.0)
    plain = Propagation(alpha=1.0, damping=0.0).correct({"w": weight}, of(*case))["w"]
    assert error(weight, found.weight, *case[1:]) < error(weight, plain.weight, *case[1:])


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0, 1), damping=st.floats(0, 100), seed=st.integers(0, 1000))
def test_the_correction_never_raises_the_stream_s_error(alpha, damping, seed):
    case = streams(seed)
    direction, _ = correction(case[0], of(*case), damping)
    before = error(case[0], case[0], *case[1:])
    assert error(case[0], case[0] + alpha * direction, *case[1:]) <= before * (1 + 1e-9)


def test_auto_is_the_best_of_a_scan_on_held_out_tokens():
    case = streams(tokens=400)
    tuned = (case[0], *(one[:80] for one in case[1:]))
    held = (case[0], *(one[80:] for one in case[1:]))
    propagation = Propagation(alpha="auto", target="residual")
    chosen = propagation.correct({"w": case[0]}, of(*tuned), of(*held), ["w"])["w"]
    mine = error(case[0], chosen.weight, *held[1:])
    for damping in propagation.dampings:
        direction, _ = correction(case[0], of(*tuned), damping)
        for alpha in torch.linspace(0, 1, 101).tolist():
            assert mine <= error(case[0], case[0] + alpha * direction, *held[1:]) * (1 + 1e-12)
    assert 0 < chosen.alpha <= 1 and chosen.target == "residual"


def test_writers_are_corrected_for_the_stream_and_others_for_their_input():
    weight, *rest = streams(rows=8)
    statistics = of(weight, *rest)
    parts = {"x.q": weight + 1, "x.down_proj": weight}
    propagation = Propagation(alpha=0.5, skip=("*.down_proj",), target="residual")
    both = propagation.correct(parts, statistics, writers=["x.down_proj"])
    assert list(both) == list(parts)
    assert [one.target for one in both.values()] == ["input", "residual"]
    plain = Propagation(alpha=0.5).correct(
        {"x.q": parts["x.q"]}, replace(statistics, residual=None)
    )
    torch.testing.assert_close(both["x.q"].weight, plain["x.q"].weight)
    direction, ridge = correction(weight, statistics, 1.0)
    torch.testing.assert_close(both["x.down_proj"].weight, weight + 0.5 * direction)
    assert both["x.down_proj"].ridge == ridge > 0
    # skipped where its target is its input, corrected where it is the stream
    assert propagation.correct(parts, statistics)["x.down_proj"].weight is weight
    assert propagation.corrects("x.down_proj", "residual")
    assert not propagation.corrects("x.down_proj")
    assert Propagation(alpha=0, target="residual").alpha_of("x.down_proj", "residual") == 0


def test_without_k_it_says_so():
    weight, inputs, reference, *_ = streams()
    statistics = collect(inputs, reference, cross=True)
    propagation = Propagation(alpha="auto", target="residual")
    with pytest.raises(ValueError, match="hold nothing of the residual stream"):
        propagation.correct({"w": weight}, statistics, writers=["w"])
    whole = of(*streams())
    with pytest.raises(ValueError, match="hold nothing of the residual stream"):
        propagation.correct({"w": weight}, whole, statistics, ["w"])


def test_the_errors_of_linears_that_are_corrected_for_the_stream_are_counted():
    """Two forms each, of the weight and of the corrected one; one where nothing is corrected."""
    _, chosen = found_in(build("llama"))
    aimed = [stage.writers for stage in chosen.stages]
    forms = {one.name: one.shape[0] * one.shape[1] ** 2 for one in chosen.linears}
    skipped = sum(form for name, form in forms.items() if name.endswith("down_proj"))
    propagation = Propagation(skip=("*.down_proj",), target="residual")
    every = 2 * sum(forms.values())
    assert errors_flops(chosen, propagation, False, aimed) == every
    assert errors_flops(chosen, propagation, True, aimed) == 2 * every
    assert errors_flops(chosen, propagation, False) == every - skipped


# Which linears write to the stream


def found_in(model: nn.Module, exclude: tuple[str, ...] = ()) -> tuple[dict[str, str], Plan]:
    chosen = with_writers(model, plan(model, exclude=exclude))
    found = {name: stage.stream for stage in chosen.stages for name in stage.writers}
    return found, chosen


ATTENTION_THEN_MLP = {
    "llama": ("self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"),
    "mistral": ("self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"),
    "opt": ("self_attn.out_proj", "fc2", "final_layer_norm"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h", "post_attention_layernorm"),
    "gpt2": ("attn.c_proj", "mlp.c_proj", "ln_2"),
}


@pytest.mark.parametrize("family", ATTENTION_THEN_MLP)
def test_attention_and_mlp_write_to_the_stream(family: str) -> None:
    found, chosen = found_in(build(family))
    first, second, norm = ATTENTION_THEN_MLP[family]
    assert found == {
        f"{block}.{name}": reader
        for block in chosen.block_names
        for name, reader in ((first, block), (second, f"{block}.{norm}"))
    }


@pytest.mark.parametrize("family", ATTENTION_THEN_MLP)
def test_without_weights_the_same_writers_are_found(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(build(family).config, dtype=torch.float32).eval()
    assert found_in(model)[0] == found_in(build(family))[0]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma3_text", {}),  # a norm on the projections' outputs
        ("phi", {}),  # attention and MLP are added to each other first
        ("gpt_neox", {}),
        ("falcon", {}),  # … in place
    ],
)
def test_where_something_stands_in_between_no_linear_writes(family: str, changes: dict) -> None:
    assert found_in(build(family, **changes))[0] == {}


@pytest.mark.parametrize(
    ("family", "changes", "count"),
    [
        ("gpt_neox", {"use_parallel_residual": False}, 2),
        ("falcon", {"parallel_attn": False}, 2),
        ("opt", {"do_layer_norm_before": False}, 2),  # the norm's output is the next stream
        ("gpt2", {"resid_pdrop": 0.5, "attn_pdrop": 0.5}, 2),  # off while it is looked at
        ("llama", {"attention_dropout": 0.5}, 2),
    ],
)
def test_what_decides_is_the_sum_and_no_family(family: str, changes: dict, count: int) -> None:
    found, chosen = found_in(build(family, **changes))
    assert len(found) == count * len(chosen.blocks)


def test_every_family_says_something() -> None:
    known = {*ATTENTION_THEN_MLP, "gemma3_text", "phi", "gpt_neox", "falcon"}
    assert known == set(FAMILIES)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_linears_that_are_left_alone_change_nothing(family: str) -> None:
    whole, _ = found_in(build(family))
    rest, _ = found_in(build(family), exclude=("*attn*",))
    assert rest == {name: reader for name, reader in whole.items() if "attn" not in name}


class Block(nn.Module):
    """A block of one MLP between dropouts, its output scaled before the sum or not."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.drop, self.scaled = nn.Dropout(0.5), scaled

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.down(torch.relu(self.up(self.norm(x)))))
        return x + (0.5 * y if self.scaled else y)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_dropout_is_nothing_in_between_but_a_scale_is(scaled: bool) -> None:
    block = Block(scaled).eval()
    linears = {"b.up": block.up, "b.down": block.down}
    found = writers({"b": block}, linears, lambda: block(torch.randn(2, 3, 8)))
    assert found == ({} if scaled else {"b.down": "b"})


# K in the walk


def first_inputs(model: nn.Module, names: list[str], batches: list[Tensor]) -> dict[str, Tensor]:
    """What modules read, ``[tokens, …]``, in plain forwards."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            read = args[0] if args else kwargs["hidden_states"]
            seen[name].append(read.reshape(-1, read.shape[-1]).clone())

        return hook

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True)
        for name in names
    ]
    with torch.inference_mode():
        for tokens in batches:
            model.base_model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_k_of_the_walk_is_that_of_captured_streams(family: str) -> None:
    """R of the model as it was, R̂ and X̂ of the model as it ends, whose later linears change neither."""
    reference, model = build(family), build(family)
    found, chosen = found_in(model)
    tokens = torch.randint(3, 60, (4, 10), generator=torch.Generator().manual_seed(0))
    batches, held = list(tokens[:3].split(2)), list(tokens[3:].split(1))
    kept = {}
    wanted = lambda stage: Moments(cross=True, residual=bool(stage.writers))  # noqa: E731
    with torch.inference_mode(), Walk(model, chosen, batches, held, wanted) as walk:
        for stage in walk:
            kept |= {name: (stage.statistics, stage.heldout) for name in stage.stage.writers}
            moved = {name: torch.round(4 * w) / 4 for name, w in stage.weights.items()}
            walk.advance(moved)
    assert set(kept) == set(found)
    for index, part in enumerate((batches, held)):
        before = first_inputs(reference, sorted(set(found.values())), part)
        after = first_inputs(model, sorted({*found.values(), *found}), part)
        for name, reader in found.items():
            lost = before[reader] - after[reader]
            expected = lost.T @ after[name] / len(lost)
            assert expected.abs().max() > 1e-3 or reader == chosen.block_names[0]
            torch.testing.assert_close(kept[name][index].residual, expected, rtol=1e-4, atol=1e-5)


def test_after_a_checkpoint_k_is_what_it_would_have_been() -> None:
    tokens = torch.randint(3, 60, (3, 10), generator=torch.Generator().manual_seed(0))
    wanted = lambda stage: Moments(cross=True, residual=bool(stage.writers))  # noqa: E731

    def walked(decided: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = build("llama")
        chosen = with_writers(model, plan(model))
        found, weights = {}, {}
        with torch.inference_mode(), Walk(model, chosen, [tokens], (), wanted, decided) as walk:
            for stage in walk:
                found |= {name: stage.statistics.residual for name in stage.stage.writers}
                weights |= {name: torch.round(4 * w) / 4 for name, w in stage.weights.items()}
                walk.advance({name: weights[name] for name in stage.weights})
        return found, weights

    whole, weights = walked({})
    early = {name: one for name, one in weights.items() if not name.startswith("model.layers.2")}
    rest, _ = walked(early)
    assert rest.keys() == {name for name in whole if name.startswith("model.layers.2")}
    for name, one in rest.items():
        assert torch.equal(one, whole[name])
