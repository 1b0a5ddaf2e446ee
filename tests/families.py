"""Tiny random decoders of many families, with every path of the real ones."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 8},
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 3, "n_head": 4},
    "falcon": {"multi_query": True, "parallel_attn": True},
    "gpt_neox": {},
    "phi": {},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention", "conv"]},
}
FAMILIES = [name for name in SPECIAL if name not in ("mixtral", "lfm2")]  # all of them linears


def build(family: str, **changes: Any) -> PreTrainedModel:
    """The same random weights on every call; norms and biases random too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **SPECIAL.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)
