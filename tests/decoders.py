"""Every causal-LM type of transformers as a tiny random model; generated, no list of types.

python tests/decoders.py     writes docs/decoders.md anew
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.walk.architecture import Plan, plan
from harness.walk.experts import unfused
from harness.walk.probe import UnsupportedModelError

PAGE = Path(__file__).parent.parent / "docs" / "decoders.md"
MARK = "<!-- written by tests/decoders.py -->"
LONGEST = 160  # characters of a reason
TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 8_000_000  # parameters of what still counts as tiny
WIDTH, HEADS, LAYERS = 32, 4, 2

# Sizes by the names that configurations have for them; a configuration takes those that it knows.
SIZES: dict[str, Any] = {
    "is_decoder": True, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "embed_dim",
                     "lru_width", "embedding_dim", "word_embed_proj_dim", "attention_hidden_size",
                     "hidden_size_global", "input_embedding_size", "output_embedding_size"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads",
                     "decoder_attention_heads", "encoder_attention_heads",
                     "num_decoder_attention_heads", "num_encoder_attention_heads",
                     "swa_num_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "dim_head", "d_kv", "d_head", "kv_channels", "swa_head_dim",
                     "attention_head_size", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                     "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
                     "encoder_layers", "num_decoder_layers", "num_encoder_layers", "depth"), LAYERS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff",
                     "dim_ff", "dff", "ffn_hidden_size", "intermediate_size_mlp", "d_inner",
                     "n_inner", "dense_intermediate_size", "feed_forward_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size",
                     "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k",
                     "moe_k"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx",
                     "max_target_positions", "model_max_length", "context_length"), 64),
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_num_heads": 4,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
    "mamba_d_state": 8, "mamba_expand": 2, "mamba_dt_rank": 4, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_d_ssm": 64, "mamba_n_groups": 1, "state_size": 8, "ssm_state_size": 8, "n_groups": 1,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "time_step_rank": 4, "use_mamba_kernels": False,
    "sliding_window": 8, "attention_window_size": 8, "image_size": 16, "patch_size": 8,
    "type_vocab_size": 2, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4,
    "num_shared_experts": 1, "n_shared_experts": 1, "moe_num_shared_experts": 1,
}  # fmt: skip


def settings(config: PretrainedConfig) -> dict[str, Any]:
    """The sizes that ``config`` knows, and those of the configurations in it."""
    known = config.to_dict().keys() | config.attribute_map.keys()
    found: dict[str, Any] = {key: SIZES[key] for key in SIZES if key in known}
    for key in config.sub_configs:
        inner = getattr(config, key, None)
        if isinstance(inner, PretrainedConfig):
            found[key] = settings(inner) | {"model_type": inner.model_type}
    return found


def build(kind: str) -> PreTrainedModel:
    """The same random weights on every call; biases and norms random too."""
    special = dict(SPECIAL.get(kind, {}))
    whole = special.pop("whole", {})
    tiny = merged(settings(CONFIG_MAPPING[kind](**whole)), special)
    config = AutoConfig.for_model(kind, **{k: v for k, v in tiny.items() if v is not None})
    with torch.device("meta"):
        count = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count / 1e6:.0f}M parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def merged(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``one`` with the values of ``other``, section by section; None takes a value out."""
    result = dict(one)
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(one.get(key), dict):
            result[key] = merged(one[key], value)
        else:
            result[key] = value
    return result


LATENT = {"num_key_value_heads": HEADS}  # one for each head, compressed
# What else some types want: sizes that others follow from, lists with an entry for each layer.
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite",
                     "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"), LATENT),
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(
        ("full_attention", "sliding_attention"), {"rope_type": "default", "rope_theta": 1e4})},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 8, "head_dim": 16, "num_key_value_heads": 1},
    "dots3_note": {"text_config": LATENT},
    "dots3_note_text": LATENT,
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "prophetnet": {"num_hidden_layers": None},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16],
                 "attn_layers": ["local", "local"]},
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64, "shape_embed_dim": 16,
                 "pronunciation_embed_dim": 16},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    **dict.fromkeys(("zamba", "zamba2"), {
        "layer_types": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4,
        "attention_hidden_size": None, "head_dim": None, "attention_head_dim": None,
    }),
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def batches() -> list[Tensor]:
    """Token ids of four windows, two at a time."""
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(3, 64, (4, 12), generator=generator).split(2))


def look(kind: str) -> tuple[list[str], PreTrainedModel | None, Plan | None]:
    """The cells of a type in the table, its model and its plan, where there are any."""
    try:
        model = unfused(build(kind))
    except Exception as error:  # whatever a configuration of such sizes runs into
        return [kind, "not built", shortened(str(error))], None, None
    try:
        chosen = plan(model)
    except UnsupportedModelError as error:
        return [kind, "refused", shortened(str(error))], model, None
    experts = sum(one.mixture is not None for one in chosen.linears)
    parts = [f"{len(chosen.linears)} linears"]
    if experts:
        parts.append(f"{experts} of experts")
    reasons = Counter(one.why for one in chosen.kept)
    parts += [f"{count} {why}" for why, count in sorted(reasons.items())]
    return [kind, "walks", "; ".join(parts)], model, chosen


def shortened(message: str) -> str:
    """The first line of a message, at most :data:`LONGEST` characters, without the advice."""
    line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    line = line.partition("; 'quantize.exclude=")[0].replace("|", "/")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def write() -> None:
    """Writes the generated part of docs/decoders.md anew."""
    rows = [look(kind)[0] for kind in TYPES]
    counts = Counter(row[1] for row in rows)
    said = ", ".join(f"{counts[key]} {key}" for key in ("walks", "refused", "not built"))
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    lines = [
        f"{MARK}\n\ntransformers {transformers.__version__}, {date.today()}: {said}.\n",
        "| type | result | what is quantised, and what of the blocks stays; or why not |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    PAGE.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def committed() -> dict[str, list[str]]:
    """The rows of docs/decoders.md by type."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row for row in rows[1:]}


if __name__ == "__main__":
    write()
