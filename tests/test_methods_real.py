"""Every base method on every linear of the real default model at 3 bits, given the same H."""

from pathlib import Path

import numpy as np
import pytest
import torch
from grids import uniform

from harness.inputs.models import AssetModel
from harness.methods.gptaq import GPTAQ
from harness.methods.gptq import GPTQ
from harness.methods.qqa import QQA
from harness.methods.quantease import QuantEase
from harness.walk.architecture import plan
from harness.walk.walk import Moments, Walk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
GOLDEN = Path(__file__).parent / "golden"
SAMPLE = (0, 9, 19, 29)  # blocks that QQA is tried on
METHODS = {
    "gptq": GPTQ(),
    "gptaq": GPTAQ(),
    "quantease": QuantEase(),
    "quantease from gptq": QuantEase(init="gptq"),
    "qqa": QQA(),
}


@pytest.fixture(scope="module")
def model():
    return AssetModel("smollm2_135m", "smollm2_135m").load().model


@pytest.fixture(scope="module")
def tokens():
    with np.load(GOLDEN / "reference_tokens.npz") as arrays:
        return torch.from_numpy(arrays["calibration"]).long()


@pytest.fixture(scope="module")
def errors(model, tokens):
    """Local and total errors ``{method: {linear: (local, total)}}`` along a GPTQ walk."""
    found = {name: {} for name in METHODS}
    moments, chosen = Moments(cross=True, gap=True), plan(model)
    with (
        torch.inference_mode(),
        Walk(model, chosen, tokens.split(4), (), lambda _: moments) as walk,
    ):
        for stage in walk:
            block = int(next(iter(stage.weights)).split(".")[2])
            for name, method in METHODS.items():
                if name == "qqa" and block not in SAMPLE:
                    continue
                results = method.quantize(stage.weights, stage.statistics, uniform(3))
                if name == "gptq":
                    decided = {linear: result.weight for linear, result in results.items()}
                for linear, weight in stage.weights.items():
                    value = results[linear].weight
                    found[name][linear] = (
                        stage.statistics.local_error(weight, value),
                        stage.statistics.total_error(weight, value),
                    )
            walk.advance(decided)
    return found


def share(errors, method, which, test):
    """The share of linears whose error of ``method`` and of GPTQ pass ``test``."""
    passed = [test(e[which], errors["gptq"][name][which]) for name, e in errors[method].items()]
    return sum(passed) / len(passed)


def test_quantease_is_below_gptq_on_most_linears(errors):
    assert len(errors["quantease"]) == 210
    assert share(errors, "quantease", 0, lambda mine, gptq: mine <= gptq) >= 0.9


def test_quantease_from_gptq_is_below_gptq_on_all_linears(errors):
    assert share(errors, "quantease from gptq", 0, lambda mine, gptq: mine <= gptq) == 1


def test_qqa_is_never_above_its_start_and_mostly_below(errors):
    assert share(errors, "qqa", 0, lambda mine, gptq: mine <= gptq) == 1
    assert share(errors, "qqa", 0, lambda mine, gptq: mine < gptq) >= 0.8


def test_gptaq_has_the_lower_total_error(errors):
    assert share(errors, "gptaq", 1, lambda mine, gptq: mine <= gptq) >= 0.95
