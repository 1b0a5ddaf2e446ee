"""The real default model against figures made with the authors' own code, token by token."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import blockwise
import numpy as np
import pandas as pd
import pytest
import torch
from runs import quiet_console

from harness import pipeline
from harness.command.cli import plan_jobs
from harness.inputs.models import AssetModel
from harness.numerics.precision import forwards
from harness.records.record import BLOCKS, LAYERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent
# Method, bits, alpha -> perplexity; made by FujitsuResearch/qep at 344329a on these tokens.
AUTHORS = {
    ("rtn", 4, 0.0): 22.937,
    ("rtn", 4, 0.5): 18.805,
    ("rtn", 3, 0.0): 445.54,
    ("rtn", 3, 0.5): 78.999,
    ("gptq", 4, 0.0): 20.776,
    ("gptq", 4, 0.5): 17.454,
    ("gptq", 3, 0.0): 111.60,
    ("gptq", 3, 0.5): 57.491,
}
FULL_PRECISION = 13.1245
NONE = ("none", 16, 0.0)
ORDERS = (256, 512, 1024, 2048)  # tokens a batch: the same run, summed in another order
T_975_3 = 3.182  # quantile of Student's t with 3 degrees of freedom
Key = tuple[str, int, float]
Measure = Callable[..., float]


@pytest.fixture(scope="module")
def perplexity(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """The perplexity of a run of the table; each is measured once, when it is asked for."""
    results = tmp_path_factory.mktemp("results")

    def measure(key: Key, batch: int = 1024, precision: str = "float32") -> float:
        method, bits, alpha = key
        words = ["experiment=methods_table", f"method={method}", f"results={results / str(batch)}"]
        words.append(f"model.dtype={precision}")
        words += [f"batch_tokens={batch}", "baseline=false"]
        words.append(f"threads={os.cpu_count()}")  # other tests have one
        if method != "none":
            words += [f"bits={bits}", f"qep.alpha={alpha}"]
        record = pipeline.run(plan_jobs(ROOT / "conf", words)[0], quiet_console()[0])
        return record.metrics["perplexity/tokens"]

    return measure


@pytest.mark.real
def test_full_precision(perplexity: Measure) -> None:
    assert perplexity(NONE) == pytest.approx(FULL_PRECISION, abs=5e-4)


@pytest.mark.real
@pytest.mark.parametrize("bits", [3, 4])
def test_rtn_is_the_authors(bits: int, perplexity: Measure) -> None:
    key = ("rtn", bits, 0.0)
    assert perplexity(key) == pytest.approx(AUTHORS[key], rel=1e-3)


@pytest.mark.parametrize("bits", [3, 4])
def test_rtn_with_propagation_is_the_authors(bits: int, perplexity: Measure) -> None:
    # A correction that differs in its last bit moves weights across rounding edges, which shows in the
    # whole model's figure: in float32 18.8 to 19.5 at 4 bits, by the order of summation.
    key = ("rtn", bits, 0.5)
    found = perplexity(key, precision="float64" if bits == 4 else "float32")
    assert found == pytest.approx(AUTHORS[key], rel=1e-2 if bits == 4 else 0.1)


@pytest.mark.parametrize("key", [("gptq", 4, 0.0), ("gptq", 4, 0.5), ("gptq", 3, 0.0)], ids=str)
def test_gptq_is_the_authors(key: Key, perplexity: Measure) -> None:
    # At 3 bits a float32 figure is a matter of chance; alpha 0.5 is 4 % off in float64 (results/double).
    found = perplexity(key, precision="float64" if key[1] == 3 else "float32")
    assert found == pytest.approx(AUTHORS[key], rel=0.02)


@pytest.mark.parametrize("key", [("rtn", 4, 0.5), ("gptq", 3, 0.0), ("gptq", 3, 0.5)], ids=str)
def test_a_run_is_the_literal_block_by_block_run(key: Key, perplexity: Measure) -> None:
    # In float64, where no order of summation moves the figure. In float32 it moves this twin by as
    # much as it moves us; tests/test_docs.py holds the committed figures to 2 % of the authors'.
    model = AssetModel("smollm2_135m", "smollm2_135m", dtype="float64").load().model
    with np.load(ROOT / "tests" / "golden" / "reference_tokens.npz") as arrays:
        tokens = {name: torch.from_numpy(arrays[name]).long() for name in arrays}
    torch.set_num_threads(os.cpu_count() or 1)
    with forwards(model):
        blockwise.quantize_model(model, tokens["calibration"], *key)
        expected = blockwise.perplexity(model, tokens["evaluation"])
    found = perplexity(key, precision="float64")
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_gptq_at_3_bits_is_the_authors_as_far_as_a_figure_tells(
    alpha: float, perplexity: Measure
) -> None:
    # At 3 bits the order of summation alone moves the figure by many percent, and the authors' is one
    # of such figures: it has to lie in the 95 % prediction interval of ours. That the rounding is
    # theirs, code by code, is for tests/test_gptq.py to say.
    key = ("gptq", 3, alpha)
    found = np.log([perplexity(key, batch) for batch in ORDERS])
    spread = found.std(ddof=1)
    assert spread < 0.12
    reach = T_975_3 * spread * np.sqrt(1 + 1 / len(ORDERS))
    assert abs(np.log(AUTHORS[key]) - found.mean()) < max(reach, 0.02)


@pytest.mark.real
def test_every_linear_and_block_of_a_float64_run_is_the_committed_one(tmp_path: Path) -> None:
    # Whatever the processor, the number of threads and the size of a batch.
    words = ["experiment=methods_table", "eval=none", "model.dtype=float64", f"results={tmp_path}"]
    words += ["method=gptq", "bits=3", "qep.alpha=0.5", "batch_tokens=512"]
    config = plan_jobs(ROOT / "conf", [*words, f"threads={os.cpu_count()}"])[0]
    pipeline.run(config, quiet_console()[0])
    (committed,) = (ROOT / "results" / "double").glob("*-gptq-w3-a0.5-*")
    for name, count in ((LAYERS, 210), (BLOCKS, 30)):
        expected, found = (
            pd.read_json(folder / name, lines=True) for folder in (committed, config.directory)
        )
        assert len(expected) == count
        # The committed run counted 16 bits for scales that were worked with in full precision.
        shown = [key for key in expected if key != "bits_per_weight"]
        pd.testing.assert_frame_equal(found[shown], expected[shown], rtol=1e-6, check_exact=False)


CLAIMS = [
    pytest.param(method, bits, marks=[pytest.mark.real] if (method, bits) == ("gptq", 3) else [])
    for method in ("rtn", "gptq")
    for bits in (3, 4)
]


@pytest.mark.parametrize(("method", "bits"), CLAIMS)
def test_propagation_lowers_the_perplexity(method: str, bits: int, perplexity: Measure) -> None:
    assert perplexity((method, bits, 0.5)) < perplexity((method, bits, 0.0))
