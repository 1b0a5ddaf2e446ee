"""Start tokens of the real models: one that depends on its own, and the default, which has none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from runs import CONF, quiet_console
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import pipeline
from harness.command.cli import plan_jobs
from harness.inputs import assets, texts
from harness.inputs.conversion import converted
from harness.records.record import read_record
from harness.settings.reading import token_windows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent
WINDOWS, LENGTH = 4, 512


def test_gemma_is_measured_with_its_start_token_before_every_window(tmp_path: Path) -> None:
    words = ["model=gemma3_270m", "method=none", f"eval.windows={WINDOWS}", "eval.tasks=[]"]
    config = plan_jobs(CONF, [*words, "tracker=none", f"results={tmp_path}"])[0]
    record = pipeline.run(config, quiet_console()[0])
    assert record.summary["bos"] == {"wiki": "every"}

    folder = converted(assets.GEMMA3_270M)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    articles = (f"{one['title']}\n\n{one['extract']}" for one in texts.wiki_articles("evaluation"))
    ids = tokenizer("\n\n".join(articles)[:60_000], add_special_tokens=False)["input_ids"]
    losses = []
    for at in range(0, WINDOWS * (LENGTH - 1), LENGTH - 1):
        window = torch.tensor([tokenizer.bos_token_id, *ids[at : at + LENGTH - 1]])
        with torch.no_grad():
            logits = model(window[None]).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    expected = math.exp(sum(losses) / WINDOWS)
    assert record.metrics["perplexity/wiki"] == pytest.approx(expected, rel=0.005)
    assert expected == pytest.approx(12.875, rel=0.005)  # docs/windows.md


def test_the_default_model_s_windows_are_those_of_the_committed_records() -> None:
    (folder, *_) = (ROOT / "results" / "default").glob("*-gptq-w3-*")
    hashes = read_record(folder).hashes
    windows = token_windows(plan_jobs(CONF, ["tracker=none"])[0])
    assert {name: one.hash for name, one in windows.items()} == {
        name: hashes[name] for name in ("calibration", "wiki")
    }
    assert all(one.start and one.start.found == "none" for one in windows.values())
