"""The bits of every linear under a budget: what each number of bits costs is tried on every linear."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from harness.allocation import Candidate, allocate
from harness.display import Display
from harness.planning import candidates, reads, weights
from harness.recipe import quantize_stage
from harness.settings.config import Config
from harness.walk.architecture import Linear, Plan
from harness.walk.walk import Moments, StageInputs, Walk


def chosen_bits(
    config: Config,
    model: PreTrainedModel,
    chosen: Plan,
    batches: Sequence[Tensor],
    heldout: Sequence[Tensor],
    console: Display,
) -> dict[str, int]:
    """The bits of every linear, see :mod:`harness.allocation`; the model stays as it is.

    Both streams of the walk have the original weights, so that H is of the full-precision model.

    Args:
        config: of the run, with a budget.
        model: in full precision.
        chosen: what is quantised.
        batches: token ids ``[windows, length]`` that calibrate.
        heldout: token ids that losses are measured on.
        console: shows how far it is.
    """
    assert config.axes.budget is not None

    def moments(stage: object) -> Moments:
        wanted = reads(config, stage)  # type: ignore[arg-type]
        return Moments(cross="cross" in wanted, magnitude="magnitude" in wanted)

    found: dict[str, list[Candidate]] = {}
    with Walk(model, chosen, batches, heldout, moments) as walk:
        for inputs in console.track(walk, "choose bits", len(chosen.stages)):
            for linear in inputs.stage.linears:
                found[linear.name] = measured(config, linear, inputs)
            walk.advance(inputs.weights)
    return allocate(found, weights(chosen.linears), config.axes.budget)


def measured(config: Config, linear: Linear, inputs: StageInputs) -> list[Candidate]:
    """What one linear, alone, loses on held-out tokens at every number of bits that it may have."""
    weight, heldout = inputs.weights[linear.name], inputs.heldout
    assert heldout is not None
    signal = heldout.local_error(weight, weight.new_zeros(()).expand_as(weight))
    some = []
    for bits, recipe in candidates(config, linear.name).items():
        made = quantize_stage({linear.name: recipe}, {linear.name: weight}, inputs.statistics)
        one = made[linear.name]
        loss = heldout.local_error(weight, one.weight) / signal if signal else 0.0
        some.append(Candidate(bits, loss, one.storage.total))
    return some
