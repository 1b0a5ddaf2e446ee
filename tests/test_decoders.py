"""Every causal-LM type of transformers: it walks without a linear left out unnamed, or is refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from decoders import TYPES, batches, committed, look
from torch import Tensor, nn

from harness.formats.int import Int
from harness.methods.gptq import GPTQ
from harness.numerics.propagation import Propagation
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax
from harness.recipe import Recipe, quantize_stage
from harness.starving import fed
from harness.walk.architecture import Plan
from harness.walk.walk import Moments, Walk

pytestmark = pytest.mark.decoders
WALKING = 170  # types at least, of those that transformers has now


def logits(model: nn.Module) -> list[Tensor]:
    with torch.inference_mode():
        return [model(input_ids=tokens, use_cache=False).logits for tokens in batches()]


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_as_the_table_says(kind: str) -> None:
    row, model, chosen = look(kind)
    assert row == committed()[kind]
    if model is None or chosen is None:
        return
    assert_all_named(chosen)
    before = logits(model)
    with Walk(model, chosen, batches()) as walk:
        for stage in walk:
            for name, measured in walk.advance(stage.weights).linears.items():
                assert measured.calibration.error == 0, name
    assert all(map(torch.equal, before, logits(model)))
    assert_closed_form(model, chosen)


def assert_all_named(chosen: Plan) -> None:
    """Every linear and every matrix of the blocks is quantised, or kept by name; embeddings aside."""
    known = {one.name for one in chosen.linears} | {one.name for one in chosen.kept}
    for prefix, block in zip(chosen.block_names, chosen.blocks, strict=True):
        for name, module in block.named_modules(prefix=prefix):
            matrices = [p for p in module.parameters(recurse=False) if p.ndim >= 2]
            if matrices and not isinstance(module, nn.Embedding):
                assert name in known, name


def assert_closed_form(model: nn.Module, chosen: Plan) -> None:
    """Quantises; the total errors in closed form are the measured ones."""
    recipe, propagation = Recipe(GPTQ(), GridSpec(Int(3), MinMax())), Propagation()
    closed: dict[str, float] = {}
    with Walk(model, chosen, batches(), moments=lambda _: Moments(cross=True, gap=True)) as walk:
        for stage in walk:
            given = fed(stage, 4)
            corrected = given.correct(propagation)
            made = quantize_stage(
                dict.fromkeys(corrected, recipe),
                {name: one.weight for name, one in corrected.items()},
                given.inputs.statistics,
            )
            for name, one in made.items():
                closed[name] = stage.statistics.total_error(stage.weights[name], one.weight)
            passed = walk.advance({name: one.weight for name, one in made.items()})
            for name, measured in passed.linears.items():
                side = measured.calibration
                if side.tokens:  # an expert may have none
                    error, signal = side.error / side.tokens, side.signal / side.tokens
                    assert closed[name] == pytest.approx(error, rel=1e-4, abs=1e-9 * signal), name
    assert closed.keys() == {one.name for one in chosen.linears}


def test_most_of_them_walk() -> None:
    results = Counter(row[1] for row in committed().values())
    assert sorted(committed()) == TYPES
    assert results["walks"] >= WALKING
