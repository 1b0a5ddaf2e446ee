"""The real default model against figures made with the authors' own code, token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import quiet_console

from harness import pipeline
from harness.cli import plan_jobs
from harness.record import Record

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


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, float], Record]:
    """The runs of the table, each measured once."""
    words = ["-m", "experiment=methods_table", "method=rtn,gptq", "bits=3,4", "qep.alpha=0,0.5"]
    words.append(f"results={tmp_path_factory.mktemp('results')}")
    found = {}
    for config in plan_jobs(ROOT / "conf", words):
        record = pipeline.run(config, quiet_console()[0])
        key = (config.method_name, config.grid.bits, float(config.qep.alpha))
        found[key] = record
        found["none", 16, 0.0] = pipeline.run(config.full_precision(), quiet_console()[0])
    return found


def test_full_precision(records: dict[tuple[str, int, float], Record]) -> None:
    value = records["none", 16, 0.0].metrics["perplexity/tokens"]
    assert value == pytest.approx(FULL_PRECISION, abs=5e-4)


@pytest.mark.parametrize("key", [key for key in AUTHORS if key[0] == "rtn"])
def test_rtn_is_the_authors(
    key: tuple[str, int, float], records: dict[tuple[str, int, float], Record]
) -> None:
    # Without propagation nothing is chaotic. With it, a correction that differs in its last bit moves
    # weights across rounding edges, which at 3 bits shows in the whole model's figure.
    tolerance = 1e-3 if key[2] == 0 else 1e-2 if key[1] == 4 else 0.1
    assert records[key].metrics["perplexity/tokens"] == pytest.approx(AUTHORS[key], rel=tolerance)


@pytest.mark.parametrize("key", [key for key in AUTHORS if key[0] == "gptq"])
def test_gptq_is_the_authors(
    key: tuple[str, int, float], records: dict[tuple[str, int, float], Record]
) -> None:
    assert records[key].metrics["perplexity/tokens"] == pytest.approx(AUTHORS[key], rel=0.02)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("bits", [3, 4])
def test_propagation_lowers_the_perplexity(
    method: str, bits: int, records: dict[tuple[str, int, float], Record]
) -> None:
    with_qep = records[method, bits, 0.5].metrics["perplexity/tokens"]
    assert with_qep < records[method, bits, 0.0].metrics["perplexity/tokens"]
