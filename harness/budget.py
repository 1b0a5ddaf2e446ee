"""The bits of every linear under a budget: what each number of bits costs is tried on every linear."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from harness.allocation import Candidate, allocate
from harness.display import Display
from harness.inputs.batches import split_windows
from harness.numerics.precision import exact
from harness.planning import candidates, trial_moments, weights
from harness.recipe import quantize_stage
from harness.settings.config import Config
from harness.starving import fed
from harness.walk.architecture import Linear, Plan
from harness.walk.holding import Hold
from harness.walk.walk import StageInputs, Walk

SHARE = 4  # one calibration window of so many is left out of the trials' H, for their losses


def chosen_bits(
    config: Config,
    model: PreTrainedModel,
    chosen: Plan,
    ids: Tensor,
    console: Display,
    hold: Hold = "forwards",
) -> dict[str, int]:
    """The bits of every linear, see :mod:`harness.allocation`; the model stays as it is.

    Both streams of the walk have the original weights, so that H is of the full-precision model. The
    windows that losses are measured on are left out of H here, and calibrate with the others afterwards.

    Args:
        config: of the run, with a budget.
        model: in full precision.
        chosen: what is quantised.
        ids: token ids ``[windows, length]`` that calibrate, two windows at least.
        console: shows how far it is.
        hold: where forwards wait.
    """
    assert config.axes.budget is not None
    count = max(1, len(ids) // SHARE)
    batches, heldout = (
        split_windows(part, config.batch_tokens, config.noise.seed)
        for part in (ids[:-count], ids[-count:])
    )

    found: dict[str, list[Candidate]] = {}
    wanted = partial(trial_moments, config)
    with Walk(model, chosen, batches, heldout, wanted, hold=hold) as walk:
        for inputs in console.track(walk, "choose bits", len(chosen.stages)):
            with exact():
                given = fed(inputs, config.experts.min_tokens).inputs
                for linear in inputs.stage.linears:
                    found[linear.name] = measured(config, linear, given)
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
        lost = heldout.local_error(weight, one.weight) / signal if signal else 0.0
        loss = lost * float(linear.share)  # of all tokens, as many as reach an expert
        some.append(Candidate(bits, loss, one.storage.total))
    return some
