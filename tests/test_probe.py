"""Which modules are the decoder's blocks: what a forward of text runs through, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, SMALL, build
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

from harness.walk.architecture import plan
from harness.walk.probe import UnsupportedModelError, check_logits, decoder_blocks, observe
from harness.walk.weightless import WeightlessError

TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "image_size": 16}
TEXT = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}


def wrapper(family: str) -> nn.Module:
    """A decoder with a vision tower of as many blocks, twice as wide."""
    tower = {**TOWER, "num_hidden_layers": SMALL["num_hidden_layers"], "patch_size": 8}
    if family == "gemma3":
        config = AutoConfig.for_model(
            family, text_config=dict(TEXT), vision_config=tower, mm_tokens_per_image=4,
            image_token_index=63, boi_token_index=62, eoi_token_index=61,
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config).eval()
    config = AutoConfig.for_model(
        family,
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**tower, "model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=63,
    )
    return AutoModelForImageTextToText.from_config(config).eval()


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_a_vision_tower_is_no_decoder(family: str) -> None:
    model = wrapper(family)
    chosen = plan(model)
    assert chosen.block_names == tuple(f"model.language_model.layers.{i}" for i in range(3))
    assert all(".language_model." in one.name for one in chosen.linears)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_of_every_family_are_found(family: str) -> None:
    model = build(family)
    names = list(decoder_blocks(model))
    assert len(names) == 3
    assert [name.rpartition(".")[2] for name in names] == ["0", "1", "2"]
    assert all(
        type(one).__name__.endswith(("Layer", "Block")) for one in decoder_blocks(model).values()
    )


class Variant(LlamaForCausalLM):
    """A Llama whose forward some test replaces."""


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**SMALL, "num_key_value_heads": 2, **changes})
    return Variant(config).eval()


def more_blocks(model: LlamaForCausalLM, count: int) -> nn.ModuleList:
    return nn.ModuleList(LlamaDecoderLayer(model.config, index) for index in range(count))


def test_heads_for_further_tokens_that_do_not_run_are_no_blocks() -> None:
    model = llama()
    model.model.mtp = more_blocks(model, 3)
    assert list(decoder_blocks(model)) == [f"model.layers.{i}" for i in range(3)]
    inside = llama()  # in the decoder's own list, as some checkpoints have them
    inside.model.layers.extend(more_blocks(inside, 1))
    assert list(decoder_blocks(inside)) == [f"model.layers.{i}" for i in range(3)]


def through(model: LlamaForCausalLM, blocks: nn.ModuleList, output: Any) -> Any:
    """Runs ``blocks`` on the hidden states of the base model's ``output``, one after the other."""
    states = output[0]
    places = torch.arange(states.shape[1], device=states.device)[None]
    angles = model.model.rotary_emb(states, places)
    for block in blocks:
        states = block(states, position_embeddings=angles)
    return output.__class__(last_hidden_state=states)


def test_a_stream_through_two_lists_has_the_blocks_of_both() -> None:
    model = llama()
    model.model.norm = nn.Identity()
    model.model.coda = more_blocks(model, 2)
    model.model.register_forward_hook(
        lambda _, args, output: through(model, model.model.coda, output)
    )
    names = [*(f"model.layers.{i}" for i in range(3)), "model.coda.0", "model.coda.1"]
    assert list(decoder_blocks(model)) == names
    assert plan(model).block_names == tuple(names)


def test_two_lists_that_run_apart_can_not_be_told() -> None:
    model = llama()  # the norm between them changes the stream
    model.model.coda = more_blocks(model, 3)
    model.model.register_forward_hook(
        lambda _, args, output: through(model, model.model.coda, output)
    )
    with pytest.raises(UnsupportedModelError, match=r"model\.layers and model\.coda run"):
        observe(model)


def test_what_runs_beside_the_stream_is_no_block() -> None:
    """A projection for each block, as of a second embedding."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(32, 32, bias=False)

        def forward(self, states: Tensor) -> Tensor:
            return self.inner(states)

    model = llama()
    model.model.beside = nn.ModuleList(Beside() for _ in range(3))

    def beside(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        model.model.beside[module.self_attn.layer_idx](args[0])

    for block in model.model.layers:
        block.register_forward_pre_hook(beside)
    assert list(decoder_blocks(model)) == [f"model.layers.{i}" for i in range(3)]
    assert len(plan(model).linears) == 21


def test_a_forward_without_use_cache_is_refused() -> None:
    class Strict(LlamaForCausalLM):
        def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
            raise AssertionError("not called")

    with pytest.raises(
        UnsupportedModelError, match=r"Strict\.forward\(input_ids\) takes no use_cache"
    ):
        observe(Strict(llama().config))


def test_a_forward_without_logits_is_refused() -> None:
    class Bare(LlamaForCausalLM):
        def forward(self, input_ids: Tensor, **options: Any) -> Any:  # type: ignore[override]
            return super().forward(input_ids, **options).to_tuple()

    with pytest.raises(UnsupportedModelError, match=r"Bare\.forward returns a tuple: logits"):
        check_logits(Bare(llama().config))


def test_states_of_another_kind_are_refused() -> None:
    model = llama()  # tokens first
    model.model.register_forward_hook(lambda _, args, output: (output[0].transpose(0, 1),))
    with pytest.raises(
        UnsupportedModelError, match=r"LlamaModel\.forward returns a tuple of \(8, 2, 32\)"
    ):
        observe(model)


def test_a_model_that_reads_values_says_so_without_weights() -> None:
    def reading(module: nn.Module, args: Any, output: Any) -> None:
        output.last_hidden_state.tolist()

    with torch.device("meta"):
        bare = llama()
    bare.model.register_forward_hook(reading)
    with pytest.raises(WeightlessError, match="without its weights its forward does not run"):
        observe(bare)


def test_a_model_is_watched_once() -> None:
    model = build("llama")
    calls: list[int] = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    plan(model, blocks="0:1")
    plan(model, exclude=("*.q_proj",))
    assert len(calls) == 1
