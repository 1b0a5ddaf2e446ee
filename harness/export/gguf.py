"""A GGUF file, as llama.cpp and transformers load it.

Blocks of 32 input columns (ggml, ``block_q4_0`` and its neighbours), d and m float16, q of the bits in the
name, the first 16 of a block in the lower halves of its bytes:

    Q4_0, Q5_0    v = d · (q − 8), d · (q − 16)        Q8_0    v = d · q, q signed
    Q4_1, Q5_1    v = d · q + m

A symmetric grid in groups of a multiple of 32 fits the first three exactly. An asymmetric one has
m = −scale · zero, which float16 rounds: each weight of a block is off by at most 2⁻¹¹ |m|.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.export.base import (
    CONFIG,
    Source,
    configuration,
    exact,
    grid_problem,
    indexed,
    write_json,
)
from harness.formats.base import Format
from harness.formats.int import Int
from harness.methods.base import Quantized
from harness.numerics.packing import pack_nibbles, pack_words
from harness.recipe import Recipe
from harness.walk.architecture import Linear

BLOCK = 32
FILE = "model.gguf"
PLAIN = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}


@dataclass(frozen=True)
class Family:
    """A family of models: its name there, and the linears whose rows llama.cpp turns.

    Args:
        name: the architecture.
        turned: pattern of a linear's last name -> where the configuration has its number of heads.
        width: of a head that transformers takes for granted; None where it reads it from the file.
    """

    name: gguf.MODEL_ARCH
    turned: Mapping[str, str] = field(default_factory=dict)
    width: Callable[[PreTrainedConfig], int] | None = None


LLAMA = Family(
    gguf.MODEL_ARCH.LLAMA, {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
)
FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,  # but for its window, as llama.cpp's own conversion has it
    "qwen2": Family(
        gguf.MODEL_ARCH.QWEN2, width=lambda it: it.hidden_size // it.num_attention_heads
    ),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, width=lambda _: 128),
}


@dataclass(frozen=True)
class GGUF:
    """Integers of up to 8 bits in groups of 32 columns or a multiple of it."""

    codes: ClassVar[bool] = True

    def problem(self, linear: Linear, recipe: Recipe) -> str | None:
        """See :meth:`Kind.problem`."""
        if found := grid_problem(linear, recipe):
            return found
        form, columns = recipe.spec.form, linear.shape[1]
        if not isinstance(form, Int):
            return f"format={type(form).__name__.lower()}"
        if indexed(linear, recipe):
            return "groups of columns that are no neighbours (act_order without static_groups)"
        if form.scales != "float16":
            return f"scales={form.scales}: has float16"
        if not form.symmetric and form.bits > 5:
            return f"bits={form.bits} with zeros: has up to 5"
        if (recipe.spec.group_size or columns) % BLOCK:
            return f"groups of {recipe.spec.group_size or columns} columns: has multiples of 32"
        return None

    def conflict(self, source: Source) -> str | None:
        """See :meth:`Kind.conflict`: families and tokenizers that are written here."""
        model, config = source.model, source.model.config
        if config.model_type not in FAMILIES:
            *most, last = FAMILIES
            return f"a {config.model_type}: writes {', '.join(most)} and {last}"
        rope = getattr(config, "rope_parameters", None) or {}
        if (kind := rope.get("rope_type", "default")) != "default":
            return f"rope_type={kind}: writes default"
        if model.dtype not in PLAIN:
            return f"model.dtype={str(model.dtype).removeprefix('torch.')}: has float32 and halves"
        for name in ("attention_bias", "mlp_bias", "sliding_window"):
            if found := getattr(config, name, None):
                return f"{name}={str(found).lower()}: writes models without"
        if config.hidden_act != "silu":
            return f"hidden_act={config.hidden_act}: writes silu"
        width = FAMILIES[config.model_type].width
        if width and (head := head_width(config)) != width(config):
            return (
                f"head_dim={head}: transformers reads {width(config)} into a {config.model_type}"
            )
        return (
            None if byte_level(source.tokenizer) else "its tokenizer: writes byte-level byte pairs"
        )

    def tensors(self, linear: Linear, quantized: Quantized, form: Format) -> dict[str, Tensor]:
        """See :meth:`Kind.tensors`: the bytes of the blocks, uint8 ``[out, in / 32 · bytes]``."""
        assert isinstance(form, Int)
        grid, rows = quantized.grid, len(quantized.codes)
        group = grid.group[::BLOCK]
        scale = exact(linear.name, grid.scale, torch.float16)[:, group]
        codes = quantized.codes.reshape(rows, -1, BLOCK)
        kind = block_type(form)
        if form.symmetric:  # the middle of the codes becomes that of the type's
            codes = codes.to(torch.int16) - 2 ** (form.bits - 1)
            middle = {Type.Q4_0: 8, Type.Q5_0: 16, Type.Q8_0: 0}[kind]
            parts = [as_bytes(scale), *levels(codes + middle, kind)]
        else:
            exact(linear.name, grid.zero, torch.uint8)
            offset = (-grid.scale * grid.zero).to(torch.float16)[:, group]
            parts = [as_bytes(scale), as_bytes(offset), *levels(codes, kind)]
        blocks = torch.cat(parts, dim=-1)
        return {f"{linear.name}.weight": blocks.reshape(rows, -1)}

    def write(self, folder: Path, parts: Sequence[Path], source: Source) -> None:
        """See :meth:`Kind.write`: one file, tensor by tensor."""
        model = source.model
        family = FAMILIES[model.config.model_type]
        writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[family.name])
        describe(writer, model)
        describe_tokenizer(writer, source.tokenizer, model)
        entries = [*stored(parts, source)]
        for name, kind, read in entries:  # a tensor at a time, and once more for its numbers
            tensor = read()
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for *_, read in entries:
            writer.write_tensor_data(read())
        writer.close()
        write_json(folder / CONFIG, configuration(model))

    def notes(self, source: Source) -> list[str]:
        """See :meth:`Kind.notes`."""
        kinds = sorted({block_type(one.spec.form).name for one in source.recipes.values()})  # type: ignore[arg-type]
        said = [
            f'llama.cpp: `llama-cli -m {FILE} -p "…"`, `llama-server -m {FILE}`; transformers: '
            f'`AutoModelForCausalLM.from_pretrained(PATH, gguf_file="{FILE}", '
            "quantization_config=GgufConfig(dequantize=True))`. "
            f"Quantised linears are {' and '.join(kinds)}, everything else is as the model had it.",
            "The file names no pre-tokenizer (`tokenizer.ggml.pre` is `default`): which of llama.cpp's "
            "splits text as this tokenizer does can't be told from its files. Where one is known, "
            f"`gguf-new-metadata --pre-tokenizer NAME {FILE} OUT` sets it; token ids are not concerned.",
        ]
        if any(name.endswith("_1") for name in kinds):
            said.append(
                "Not exact: a zero becomes an offset of a block, which is stored as float16, so each "
                "weight of a block is off by up to 2⁻¹¹ of that offset. Symmetric grids have none."
            )
        return said


def block_type(form: Int) -> Type:
    """The smallest type of block that holds the codes of a format."""
    if form.symmetric:
        return Type.Q4_0 if form.bits <= 4 else Type.Q5_0 if form.bits == 5 else Type.Q8_0
    return Type.Q4_1 if form.bits <= 4 else Type.Q5_1


def levels(codes: Tensor, kind: Type) -> list[Tensor]:
    """The bytes ``[rows, blocks, n]`` of codes ``[rows, blocks, 32]``: fifth bits first, then halves."""
    if kind is Type.Q8_0:
        return [codes.to(torch.int8).view(torch.uint8)]
    half = BLOCK // 2
    paired = torch.stack([codes[..., :half], codes[..., half:]], dim=-1).flatten(-2)
    low = pack_nibbles(paired & 15)
    if kind in (Type.Q4_0, Type.Q4_1):
        return [low]
    return [pack_words(codes >> 4, 1).view(torch.uint8), low]


def as_bytes(numbers: Tensor) -> Tensor:
    """float16 ``[rows, blocks]`` as uint8 ``[rows, blocks, 2]``."""
    return numbers.contiguous().unsqueeze(-1).view(torch.uint8)


def stored(
    parts: Sequence[Path], source: Source
) -> Iterator[tuple[str, Type, Callable[[], np.ndarray[Any, Any]]]]:
    """Every tensor: its name there, its type, and what reads it."""
    model = source.model
    family = FAMILIES[model.config.model_type]
    names = gguf.get_tensor_name_map(family.name, model.config.num_hidden_layers)
    for part in parts:
        with safe_open(part, "pt") as file:
            keys = file.keys()  # it is no mapping
            vectors = {key: len(file.get_slice(key).get_shape()) == 1 for key in keys}
        for key in vectors:
            owner = key.rpartition(".")[0]
            recipe = source.recipes.get(owner) if key.endswith(".weight") else None
            heads = family.turned.get(owner.rpartition(".")[2])
            turn = getattr(model.config, heads) if heads else 0
            there = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if there is None:
                raise ValueError(f"save=gguf: {key} has no name in {family.name.name}")
            kind = Type.F32 if vectors[key] else PLAIN[model.dtype]
            if recipe is not None:
                assert isinstance(recipe.spec.form, Int)
                kind = block_type(recipe.spec.form)
            yield there, kind, reader(part, key, turn)


def reader(part: Path, key: str, heads: int) -> Callable[[], np.ndarray[Any, Any]]:
    """What reads a tensor from a part, its rows turned for so many heads unless that is 0."""

    def read() -> np.ndarray[Any, Any]:
        with safe_open(part, "pt") as file:
            tensor: Tensor = file.get_tensor(key)
        if heads:  # the halves that are rotated against each other, row by row in turn
            halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        if tensor.ndim == 1:
            tensor = tensor.to(torch.float32)
        elif tensor.dtype == torch.bfloat16:
            tensor = tensor.contiguous().view(torch.uint8)
        return tensor.contiguous().numpy()

    return read


def describe(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    """Writes the dimensions of a model."""
    config = model.config
    head = head_width(config)
    writer.add_file_type(gguf.LlamaFileType.GUESSED)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def head_width(config: PreTrainedConfig) -> int:
    """The dimensions of an attention head."""
    said: int | None = getattr(config, "head_dim", None)
    return said or config.hidden_size // config.num_attention_heads


def byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer merges pairs of bytes, written as GPT-2 does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    plain = json.loads(backend.to_str())
    return plain["model"].get("type") == "BPE" and "ByteLevel" in json.dumps(plain["decoder"])


def describe_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """Writes the vocabulary of a byte-pair tokenizer, its merges, special tokens and chat template."""
    size = model.config.vocab_size
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    kinds = []
    for index in range(size):
        if index not in known:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in special or (index in added and added[index].special):
            kinds.append(gguf.TokenType.CONTROL)
        else:
            own = index in added
            kinds.append(gguf.TokenType.USER_DEFINED if own else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([known.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types(kinds)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)
