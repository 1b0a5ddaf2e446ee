"""Floating-point operations, counted from shapes: a multiply and an add are two."""

from __future__ import annotations

from transformers import PreTrainedModel

from harness.architecture import Plan, find_blocks
from harness.propagation import Propagation
from harness.walk import Moments


def forward_flops(model: PreTrainedModel, tokens: int, length: int, head: bool) -> float:
    """One forward of ``tokens`` in windows of ``length``: all matrices, and attention over the window.

    2 · parameters · tokens for every matrix of the decoder blocks (and of the output head), and
    2 · 2 · tokens · length · hidden for scores and values of each block.
    """
    blocks = find_blocks(model)[1]
    matrices = sum(p.numel() for p in blocks.parameters() if p.ndim >= 2)
    hidden: int = model.config.get_text_config(decoder=True).hidden_size
    output = model.get_output_embeddings() if head else None  # type: ignore[no-untyped-call]
    matrices += 0 if output is None else output.weight.numel()
    return 2.0 * matrices * tokens + 4.0 * tokens * length * hidden * len(blocks)


def statistics_flops(columns: int, tokens: int, moments: Moments) -> float:
    """H, C and D of one stage; H and D are symmetric and cost half a product."""
    product = 2.0 * tokens * columns**2
    return product * (0.5 + moments.cross + 0.5 * moments.gap)


def correction_flops(rows: int, columns: int) -> float:
    """The Cholesky factor of H + λI, two triangular systems per row of C or W C, a product with W."""
    return columns**3 / 3 + 2.0 * min(rows, columns) * columns**2 + 2.0 * rows * columns**2


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
    total = 2 * forward_flops(model, tokens + heldout, length, head=False)
    for stage, wanted in zip(plan.stages, moments, strict=True):
        if stage.source is None:
            columns = stage.linears[0].shape[1]
            total += statistics_flops(columns, tokens + heldout, wanted)
    return total


def propagation_flops(plan: Plan, propagation: Propagation) -> float:
    """The corrections of all stages; "auto" factors H once per damping."""
    total = 0.0
    for stage in plan.stages:
        columns = stage.linears[0].shape[1]
        rows = sum(one.shape[0] for one in stage.linears if propagation.corrects(one.name))
        if not rows:
            continue
        automatic = any(propagation.alpha_of(one.name) == "auto" for one in stage.linears)
        once = correction_flops(rows, columns)
        if (
            automatic
        ):  # per damping a factor, a solution and an error; W C' once, and W C where few
            product = 2.0 * rows * columns**2
            shared = product if rows <= columns else 0.0
            trial = once - shared + error_flops(rows, columns)
            once = len(propagation.dampings) * trial + shared + product
        total += once
    return total
