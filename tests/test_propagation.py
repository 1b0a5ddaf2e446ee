from string import ascii_lowercase

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import golden, instance

from harness.numerics.propagation import Propagation, best_alphas, correction
from harness.numerics.statistics import collect


def correct_weight(weight, inputs, reference, alpha, damping):
    statistics = collect(inputs, reference, cross=True)
    return Propagation(alpha, damping).correct({"w": weight}, statistics)["w"].weight


def test_alpha_one_without_damping_is_least_squares():
    weight, inputs, reference = (t.double() for t in instance())
    corrected = correct_weight(weight, inputs, reference, alpha=1.0, damping=0.0)
    expected = torch.linalg.lstsq(inputs, reference @ weight.T).solution.T
    torch.testing.assert_close(corrected, expected, rtol=1e-8, atol=1e-10)


def test_alpha_zero_is_identity():
    weight, inputs, _ = instance()
    statistics = collect(inputs)
    assert Propagation(alpha=0).correct({"w": weight}, statistics)["w"].weight is weight


@settings(max_examples=80, deadline=None)
@given(
    alpha=st.floats(0, 1),
    damping=st.floats(0, 100),
    seed=st.integers(0, 10_000),
    mismatch=st.floats(0.01, 3),
)
def test_correction_never_raises_the_total_error(alpha, damping, seed, mismatch):
    weight, inputs, reference = (
        t.double() for t in instance(6, 12, 60, seed=seed, mismatch=mismatch)
    )
    statistics = collect(inputs, reference, cross=True, gap=True)
    corrected = correct_weight(weight, inputs, reference, alpha=alpha, damping=damping)
    before = statistics.total_error(weight, weight)
    assert statistics.total_error(weight, corrected) <= before * (1 + 1e-9)


def test_auto_is_the_best_of_a_scan_on_held_out_tokens():
    weight, inputs, reference = (t.double() for t in instance(tokens=400, mismatch=0.5))
    tuned = collect(inputs[:80], reference[:80], cross=True, gap=True)
    heldout = collect(inputs[80:], reference[80:], cross=True, gap=True)
    propagation = Propagation(alpha="auto")
    chosen = propagation.correct({"w": weight}, tuned, heldout)["w"]
    error = heldout.total_error(weight, chosen.weight)
    for damping in propagation.dampings:
        direction, _ = correction(weight, tuned, damping)
        for alpha in torch.linspace(0, 1, 101).tolist():
            assert error <= heldout.total_error(weight, weight + alpha * direction) * (1 + 1e-12)
    assert 0 < chosen.alpha < 1
    assert chosen.damping in propagation.dampings


def test_best_alpha_predicts_its_change():
    weight, inputs, reference = (t.double() for t in instance(mismatch=0.5))
    statistics = collect(inputs, reference, cross=True, gap=True)
    direction, _ = correction(weight, statistics, 0.1)
    carried = weight @ statistics.require_cross()
    ((alpha, change),) = best_alphas([carried], [direction], statistics.hessian)
    before, after = (statistics.total_error(weight, weight + a * direction) for a in (0.0, alpha))
    assert after - before == pytest.approx(change, rel=1e-8)
    assert best_alphas([carried], [-direction], statistics.hessian) == [(0.0, 0.0)]


def test_linears_of_a_stage_are_corrected_as_if_alone():
    weight, inputs, reference = instance(rows=30)
    statistics = collect(inputs, reference, cross=True, gap=True)
    parts = {"a": weight[:10], "b": weight[10:]}
    for alpha in (0.5, "auto"):
        propagation = Propagation(alpha=alpha)
        together = propagation.correct(parts, statistics, statistics)
        for name, part in parts.items():
            alone = propagation.correct({name: part}, statistics, statistics)[name]
            torch.testing.assert_close(together[name].weight, alone.weight)


def test_skip_and_overrides():
    propagation = Propagation(
        alpha=0.5, skip=("*.down_proj",), overrides={"*.o_proj": 1.0, "last.down_proj": 0.25}
    )
    names = ("x.q_proj", "x.o_proj", "x.down_proj", "last.down_proj")
    assert [propagation.alpha_of(name) for name in names] == [0.5, 1.0, 0.0, 0.25]
    assert [propagation.corrects(name) for name in names] == [True, True, False, True]


def test_bad_options_are_all_named():
    with pytest.raises(ValueError) as caught:
        Propagation(alpha=1.5, damping=-1, overrides={"*.x": 2.0}, dampings=())
    for part in ("alpha=1.5", "damping=-1", "overrides[*.x]=2.0", "dampings=()"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["s_seed101", "l_seed102", "s_seed103_dead"])
def test_golden(name):
    arrays = golden(f"qep_correction_{name}")
    alive = arrays["X_q"].any(dim=0)  # the authors zero dead columns, we leave them to the method
    # The authors' H is 2/4 XᵀX (four batches) and a dead column enters its mean as 1.
    total = arrays["X_q"].double().square().sum().item() / 2
    raise_by = 1 + (~alive).sum().item() / total
    for key in [key for key in arrays if key.startswith("W_corr__")]:
        damping, alpha = (
            float(part.strip(ascii_lowercase)) for part in key.removeprefix("W_corr__").split("__")
        )
        corrected = correct_weight(
            arrays["W"], arrays["X_q"], arrays["X_fp"], alpha=alpha, damping=damping * raise_by
        )
        difference = (corrected - arrays[key])[:, alive].norm() / arrays[key].norm()
        assert difference < 1e-5, key
