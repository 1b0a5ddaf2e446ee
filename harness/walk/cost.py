"""Floating-point operations, counted from shapes: a multiply and an add are two."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.numerics.propagation import Propagation, Target, correction_flops
from harness.walk.architecture import Linear, Plan
from harness.walk.experts import experts_of
from harness.walk.limits import hidden_size
from harness.walk.probe import decoder_blocks, observe
from harness.walk.walk import Moments

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def forward_flops(model: PreTrainedModel, tokens: int, keys: int) -> float:
    """The decoder blocks on ``tokens``, each of which attends to ``keys`` positions.

    2 · tokens for every entry of a matrix that a token meets (those of the experts that it chooses, none
    of linears that text does not run), and 2 · 2 · tokens · keys for every column of the queries: scores
    and values (masked ones are computed as well).
    """
    blocks = decoder_blocks(model)
    matrices = sum(
        p.numel() for block in blocks.values() for p in block.parameters() if p.ndim >= 2
    ) - _unmet(model, tuple(blocks))
    config = model.config.get_text_config(decoder=True)
    heads, head_dim = (getattr(config, key, None) for key in ("num_attention_heads", "head_dim"))
    width = heads * head_dim if heads and head_dim else hidden_size(model)
    return 2.0 * matrices * tokens + 4.0 * tokens * keys * width * len(blocks)


def _unmet(model: PreTrainedModel, blocks: tuple[str, ...]) -> float:
    """How many entries of the blocks' matrices a token does not meet, on an average."""
    seen = observe(model)
    called = {read.linear for read in seen.reads} | seen.bare
    unmet = 0.0
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in blocks)
        if inside and isinstance(module, nn.Linear | Conv1D):
            chosen = seen.experts.get(name.rsplit(".", 2)[0])
            experts = len(experts_of(model.get_submodule(name.rsplit(".", 2)[0]))) if chosen else 1
            share = (chosen or 1) / experts if name in called else 0.0
            unmet += (1 - share) * module.weight.numel()
    return unmet


def head_flops(model: PreTrainedModel, rows: int) -> float:
    """The output head on ``rows`` positions."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    entries: int = head.weight.numel()
    return 2.0 * entries * rows


def statistics_flops(columns: int, tokens: float, moments: Moments, rows: int = 0) -> float:
    """H, C and D of one stage, and K of ``rows``; H and D are symmetric and cost half a product."""
    product = 2.0 * tokens * columns**2
    residual = 2.0 * tokens * columns * rows * moments.residual
    return product * (0.5 + moments.cross + 0.5 * moments.gap) + residual


def error_flops(rows: int, columns: int) -> float:
    """One quadratic form tr(Δ H Δᵀ), H symmetric: half a product."""
    return float(rows) * columns**2


def calibration_flops(
    model: PreTrainedModel,
    plan: Plan,
    moments: list[Moments],
    tokens: int,
    heldout: int,
    length: int,
) -> float:
    """The walk: two streams over all tokens, and the statistics of every stage."""
    total = 2 * forward_flops(model, tokens + heldout, length)
    for stage, wanted in zip(plan.stages, moments, strict=True):
        if stage.source is None:
            rows, columns = stage.linears[0].shape
            count = (tokens + heldout) * stage.linears[0].share
            total += statistics_flops(columns, float(count), wanted, rows)
    return total


def own_flops(model: PreTrainedModel, plan: Plan, own: Sequence[int]) -> float:
    """Tokens of the method's own, (windows, length): one stream, and H of every stage."""
    windows, length = own
    tokens = windows * length
    readers = [stage.linears[0] for stage in plan.stages if stage.source is None]
    moments = sum(
        statistics_flops(one.shape[1], float(tokens * one.share), Moments()) for one in readers
    )
    return forward_flops(model, tokens, length) + moments


def propagation_flops(
    plan: Plan, propagation: Propagation, writers: Sequence[Collection[str]] = ()
) -> float:
    """The corrections of all stages; "auto" factors H once per damping.

    ``writers`` are, by stage, the linears whose target is the residual stream: each is corrected alone.
    """
    total = 0.0
    for stage, alone in zip(plan.stages, writers or [()] * len(plan.stages), strict=True):
        columns = stage.linears[0].shape[1]
        parts: list[tuple[list[Linear], Target]] = [
            ([one], "residual") for one in stage.linears if one.name in alone
        ]
        parts.append(([one for one in stage.linears if one.name not in alone], "input"))
        for linears, target in parts:
            alphas = [propagation.alpha_of(one.name, target) for one in linears]
            rows = sum(
                one.shape[0] for one, alpha in zip(linears, alphas, strict=True) if alpha != 0
            )
            if not rows:
                continue
            once = correction_flops(rows, columns)
            if "auto" in alphas:
                # Per damping a factor, a solution and an error; W C' once, and W C where rows are few.
                product = 2.0 * rows * columns**2
                shared = product if rows <= columns else 0.0
                trial = once - shared + error_flops(rows, columns)
                once = len(propagation.dampings) * trial + shared + product
            total += once
    return total


def errors_flops(
    plan: Plan, propagation: Propagation, heldout: bool, writers: Sequence[Collection[str]] = ()
) -> float:
    """The errors of all linears, of the weight and of the corrected one, also on held-out tokens.

    ``writers`` are, by stage, the linears whose target is the residual stream.
    """
    total = 0.0
    for stage, aimed in zip(plan.stages, writers or [()] * len(plan.stages), strict=True):
        for linear in stage.linears:
            target: Target = "residual" if linear.name in aimed else "input"
            weights = 1 + propagation.corrects(linear.name, target)
            total += error_flops(*linear.shape) * weights * (1 + heldout)
    return total
