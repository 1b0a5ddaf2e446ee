"""RTN and GPTQ with QEP as its authors run them: one decoder block after the other, window by window.

The slow literal twin of a whole run on a Llama: every group of linears gets its inputs from forwards of
its own, sums go window by window, columns are rounded one at a time. All arithmetic is in the model's
precision.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),  # never corrected
)
BLOCK = 128


@torch.no_grad()
def quantize_model(
    model: PreTrainedModel,
    windows: Tensor,
    method: str,
    bits: int,
    alpha: float,
    damping: float = 1.0,
) -> None:
    """Quantises every linear of the decoder blocks in place; ``windows [windows, length]``.

    With H = X̂ᵀX̂ / T and C = (X − X̂)ᵀX̂ / T ``[in, in]`` a weight W ``[out, in]`` is first corrected,
    W* = W + α W C (H + λI)⁻¹ with λ = damping · mean(diag H) (Arai & Ichikawa 2025, arXiv 2504.09629).
    """
    rounded = {"rtn": rtn, "gptq": gptq}[method]
    states, arguments = entering(model, windows)
    reference, quantized = states, states
    for block in model.model.layers:
        original = copy.deepcopy(block)
        for names in GROUPS:
            linears = [block.get_submodule(name) for name in names]
            columns = linears[0].in_features
            hessian = linears[0].weight.new_zeros(columns, columns)
            cross = hessian.clone()
            for mine, theirs in zip(quantized, reference, strict=True):
                x_hat = inputs_of(block, names[0], mine, arguments)
                x = inputs_of(original, names[0], theirs, arguments)
                hessian += x_hat.T @ x_hat / windows.numel()
                cross += (x - x_hat).T @ x_hat / windows.numel()
            for linear in linears:
                weight = linear.weight.data
                if alpha and names != GROUPS[-1]:
                    ridge = damping * hessian.diagonal().mean() * torch.eye(columns).to(hessian)
                    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian + ridge))
                    weight = weight + alpha * weight @ cross @ inverse
                linear.weight.data = rounded(weight, hessian, bits)
        quantized = [output_of(block, state, arguments) for state in quantized]
        reference = [output_of(original, state, arguments) for state in reference]


@torch.no_grad()
def perplexity(model: PreTrainedModel, windows: Tensor) -> float:
    """exp of the mean loss; the first token of a window is not predicted."""
    losses = []
    for window in windows:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].double()
        losses.append(nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    return torch.cat(losses).mean().exp().item()


class _Entered(Exception):
    pass


def entering(model: PreTrainedModel, windows: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """What enters the first block, a window each, and the arguments that every block gets."""
    states: list[Tensor] = []
    arguments: dict[str, Any] = {}

    def enter(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0])
        arguments.update(kwargs)
        raise _Entered

    handle = model.model.layers[0].register_forward_pre_hook(enter, with_kwargs=True)
    for window in windows:
        try:
            model(input_ids=window[None], use_cache=False)
        except _Entered:
            continue
    handle.remove()
    return states, arguments


def inputs_of(block: nn.Module, name: str, state: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The inputs ``[tokens, in]`` of a linear in one forward of its block."""
    found: list[Tensor] = []
    module = block.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0][0]))
    block(state, **arguments)
    handle.remove()
    return found[0]


def output_of(block: nn.Module, state: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What leaves a block."""
    output = block(state, **arguments)
    return output[0] if isinstance(output, tuple) else output


def grid(weight: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale and zero ``[out]`` of every row, codes 0 to ``top``."""
    lo, hi = weight.amin(dim=1).clamp(max=0), weight.amax(dim=1).clamp(min=0)
    scale = (hi - lo) / top
    return scale, torch.round(-lo / scale)


def rtn(weight: Tensor, hessian: Tensor, bits: int) -> Tensor:
    """Every weight of ``weight [out, in]`` to the nearest point of its row's grid."""
    top = 2**bits - 1
    scale, zero = (one[:, None] for one in grid(weight, top))
    return scale * (torch.clamp(torch.round(weight / scale) + zero, 0, top) - zero)


def gptq(weight: Tensor, hessian: Tensor, bits: int) -> Tensor:
    """Frantar et al. 2022, algorithm 1: damping 0.01, blocks of 128 columns, per-channel grid.

    ``weight`` is W* ``[out, in]``, ``hessian`` H ``[in, in]``; V ``[out, in]``.
    """
    work, top = weight.clone(), 2**bits - 1
    scale, zero = grid(work, top)
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)).to(hessian)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    result = torch.zeros_like(work)
    for start in range(0, work.shape[1], BLOCK):
        end = min(start + BLOCK, work.shape[1])
        errors = torch.zeros_like(work[:, start:end])
        for j in range(start, end):
            codes = torch.clamp(torch.round(work[:, j] / scale) + zero, 0, top)
            result[:, j] = scale * (codes - zero)
            error = (work[:, j] - result[:, j]) / factor[j, j]
            work[:, j:end] -= torch.outer(error, factor[j, j:end])
            errors[:, j - start] = error
        work[:, end:] -= errors @ factor[start:end, end:]
    return result
