"""Model code that comes with a checkpoint: run where it is allowed, everywhere, and never asked about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import run
from runs import configured, do, words
from transformers import dynamic_module_utils

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
TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class MineTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with configuration, model and tokenizer of its own code."""
    target = tmp_path / "folder" / "tiny"
    target.mkdir(parents=True)
    for file in (tiny_folder / "tiny").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target.parent / "text.txt").write_text((tiny_folder / "text.txt").read_text())
    for name, code in (
        ("configuration", CONFIGURATION),
        ("modeling", MODEL),
        ("tokenization", TOKENIZER),
    ):
        (target / f"{name}_mine.py").write_text(code)
    change(target / "config.json", model_type="mine_of_tests", architectures=["MineForCausalLM"],
           auto_map={"AutoConfig": "configuration_mine.MineConfig",
                     "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"})  # fmt: skip
    change(target / "tokenizer_config.json", tokenizer_class="MineTokenizer",
           auto_map={"AutoTokenizer": [None, "tokenization_mine.MineTokenizer"]})  # fmt: skip
    return target.parent


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
