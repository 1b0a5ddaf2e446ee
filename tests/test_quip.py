import pytest
import torch
from reference import golden, instance

from harness.formats.midrise import MidRise
from harness.methods.gptq import GPTQ
from harness.methods.quip import QuIP
from harness.numerics.basis import Basis, Chain, Dense, Diagonal, transformed
from harness.numerics.statistics import collect
from harness.ranges.base import GridSpec
from harness.ranges.rms import RMS
from harness.recipe import Recipe, quantize_stage
from harness.transforms.rescale import Rescale


def spec(bits, scales="float32"):
    return GridSpec(MidRise(bits, scales), RMS())


def relative_loss(weight, value, inputs):
    hessian = inputs.double().T @ inputs.double()
    rest, weight = (value - weight).double(), weight.double()
    return (((rest @ hessian) * rest).sum() / ((weight @ hessian) * weight).sum()).item()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", ["s_seed161", "l_seed162"])
def test_golden(name, bits):
    """With the authors' rescaling and matrices handed in; their result passes through float16."""
    arrays = golden(f"quip_{name}")
    weight, inputs = arrays["W"], arrays["X"]
    scale, turn, mix = arrays["rescale"], arrays["V"], arrays["U"]
    basis = Basis(Chain((Diagonal(scale), Dense(turn))), Chain((Dense(mix),)))
    statistics = collect(inputs)
    for part in basis.inputs.parts:
        statistics = transformed(statistics, part)
    found = QuIP().quantize({"w": basis.into(weight)}, statistics, spec(bits))["w"]
    value, expected = basis.back(found.weight), arrays[f"Q__b{bits}"]
    alike = (value - expected).abs() <= 1e-3 * weight.abs().max()
    assert alike.float().mean() >= 0.99
    loss = arrays[f"relative_loss__b{bits}"].item()
    assert relative_loss(weight, value, inputs) == pytest.approx(loss, rel=5e-3)


@pytest.mark.parametrize("name", ["s_seed161", "l_seed162"])
def test_golden_rescaling(name):
    arrays = golden(f"quip_{name}")
    found = Rescale("float32").find({"w": arrays["W"]}, collect(arrays["X"]), spec(3))
    torch.testing.assert_close(found.inputs.scale, arrays["rescale"], rtol=1e-5, atol=0)


def composed(weight, statistics, bits=3):
    recipe = Recipe(QuIP(), spec(bits, "float16"), QuIP.composition.transforms)
    return quantize_stage({"w": recipe}, {"w": weight}, statistics)["w"], recipe


def test_the_composition_is_quip():
    weight, inputs, _ = instance(rows=40, columns=60)
    weight[:, 3] *= 20
    statistics = collect(inputs)
    result, recipe = composed(weight, statistics)
    assert result.grid.shared and (result.grid.scale == result.grid.scale[0]).all()
    assert result.storage == recipe.storage(40, 60)
    # 3 bits, one float16 scale, a float16 per column for the rescaling and a seed for each side
    assert result.storage.total == 40 * 60 * 3 + 16 + 60 * 16 + 2 * 64
    plain = GPTQ().quantize({"w": weight}, statistics, GridSpec(MidRise(3), RMS()))["w"]
    errors = [statistics.local_error(weight, one.weight) for one in (result, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_each_linear_of_a_stage_has_its_own_scale():
    weight, inputs, _ = instance(rows=40, columns=60)
    parts = {"a": weight[:10], "b": 10 * weight[10:]}
    recipe = Recipe(QuIP(), spec(3), QuIP.composition.transforms)
    results = quantize_stage(dict.fromkeys(parts, recipe), parts, collect(inputs))
    scales = [results[name].grid.scale[0, 0].item() for name in parts]
    assert 8 < scales[1] / scales[0] < 12


def test_weights_are_cut_before_rounding_so_that_what_is_cut_off_is_not_fed_back():
    weight, inputs, _ = instance(rows=20, columns=32)
    weight[0, 31] = 40.0  # the first in the order, from the last column on
    statistics = collect(inputs)
    grid = spec(3).fit(weight)
    cut = QuIP().quantize(
        {"w": grid.cut(weight)}, statistics, GridSpec(MidRise(3), RMS(), given=grid)
    )
    assert torch.equal(
        QuIP().quantize({"w": weight}, statistics, spec(3))["w"].codes, cut["w"].codes
    )


def test_bad_options():
    with pytest.raises(ValueError, match="damping=-1: allowed"):
        QuIP(damping=-1)
