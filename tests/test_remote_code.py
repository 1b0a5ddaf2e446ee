"""Model code that comes with a checkpoint: run where it is allowed, everywhere, and never asked about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import run
from runs import configured, do, words
from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils

from harness.command.checks import checks
from harness.command.estimate import Estimator
from harness.records.record import read_rows

pytestmark = pytest.mark.long  # whole runs, or every composition

CONFIGURATION = """
from transformers import LlamaConfig

class MineConfig(LlamaConfig):
    model_type = "mine_of_tests"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_mine import MineConfig

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
OWN_MODEL = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

class MineConfig(PreTrainedConfig):
    model_type = "mine_of_tests"

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix, self.up, self.down = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, states):
        places = torch.arange(1, states.shape[1] + 1, device=states.device)[:, None]
        states = states + self.mix(states).cumsum(1) / places
        return states + self.down(torch.tanh(self.up(states)))

class MineForCausalLM(PreTrainedModel):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.tokens, config.width)
        self.steps = nn.Sequential(*(Block(config.width) for _ in range(config.depth)))
        self.head = nn.Linear(config.width, config.tokens, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.table

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache=None, attention_mask=None):
        return CausalLMOutput(logits=self.head(self.steps(self.table(input_ids))))
"""
TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class MineTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with configuration, model and tokenizer of its own code."""
    target = tmp_path / "folder" / "tiny"
    shutil.copytree(tiny_folder / "tiny", target)
    shutil.copy(tiny_folder / "text.txt", target.parent)
    write_code(target, MODEL)
    (target / "tokenization_mine.py").write_text(TOKENIZER)
    change(target / "tokenizer_config.json", tokenizer_class="MineTokenizer",
           auto_map={"AutoTokenizer": [None, "tokenization_mine.MineTokenizer"]})  # fmt: skip
    return target.parent


def write_code(target: Path, model: str) -> None:
    (target / "configuration_mine.py").write_text(CONFIGURATION)
    (target / "modeling_mine.py").write_text(model)
    change(target / "config.json", model_type="mine_of_tests", architectures=["MineForCausalLM"],
           auto_map={"AutoConfig": "configuration_mine.MineConfig",
                     "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"})  # fmt: skip


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "colours.jsonl"
    rows = ({"query": f"{i} which", "choices": ["red", "old stone"], "gold": 0} for i in range(9))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


ALLOWED = "model.trust_remote_code=true"


def test_it_runs_where_it_is_allowed(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    arguments = words(folder, tmp_path / "results", ALLOWED, "method=rtn", "group_size=16")
    for more in (["dry_run=true"], []):
        ended = run([*arguments, *more], tmp_path)
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
        assert "warns" not in ended.stdout


def test_it_answers_questions_too(
    folder: Path, tiny_folder: Path, questions: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    tasks = (f"eval.tasks=[{questions}]", "method=none", ALLOWED)
    mine = do(configured(folder, tmp_path / "mine", *tasks))
    theirs = do(configured(tiny_folder, tmp_path / "theirs", *tasks))
    assert mine.metrics == theirs.metrics


def test_a_model_that_is_like_no_other_runs(
    folder: Path, questions: Path, tmp_path: Path, monkeypatch
) -> None:
    """None of the names that the configurations of transformers have, and no attention."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    target = folder / "tiny"
    (target / "modeling_mine.py").write_text(OWN_MODEL)
    config = {
        **{"model_type": "mine_of_tests", "architectures": ["MineForCausalLM"]},
        **{"tokens": 64, "width": 32, "depth": 3, "dtype": "float32"},
        "auto_map": {
            "AutoConfig": "modeling_mine.MineConfig",
            "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
        },
    }
    (target / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(target, trust_remote_code=True), trust_remote_code=True
    ).save_pretrained(target)
    more = (f"eval.tasks=[{questions}]", "method=rtn", ALLOWED)
    own = configured(folder, tmp_path / "own", *more)
    assert list(checks([own])) == []
    estimate, record = Estimator()(own), do(own)
    assert record.flops == estimate.flops
    layers = read_rows(own.directory / "layers.jsonl")
    assert [row["name"] for row in layers[:3]] == [
        f"steps.0.{name}" for name in ("mix", "up", "down")
    ]
    assert len(layers) == 9


def test_it_is_refused_where_it_is_not(folder: Path, tmp_path: Path) -> None:
    refusal = "brings code of its own; model.trust_remote_code=true runs it"
    model, results = folder / "tiny", tmp_path / "results"
    ended = run(words(folder, results), tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: model.path='{model}': it {refusal}\n"
    change(model / "config.json", model_type="llama", auto_map={})
    ended = run(words(folder, results, "method=none"), tmp_path)  # the tokenizer's alone
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: model.path='{model}': its tokenizer {refusal}\n"
