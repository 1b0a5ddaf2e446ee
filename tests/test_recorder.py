"""What a recorder finds out about the code that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from runs import configured, do

from harness.records.environment import git_commit
from harness.records.recorder import summary


def test_the_commit_says_whether_code_differs_and_records_do_not_count(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.strip()

    code, record = tmp_path / "harness" / "code.py", tmp_path / "results" / "set" / "record.json"
    for file in (code, record):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    ask = git_commit.__wrapped__
    assert ask(code.parent) == ""
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40
    record.write_text("2")
    assert ask(code.parent) == commit
    code.write_text("2")
    assert ask(code.parent) == f"{commit}+"


def test_a_summary_needs_no_bits_that_a_format_lacks(tiny_folder: Path, tmp_path: Path) -> None:
    words = ("bits=[4]", "format=nf4", "group_size=16", "budget=5.1")
    found = summary(configured(tiny_folder, tmp_path, *words))
    assert (found["bits"], found["format"]) == (5.1, "nf4")


@pytest.mark.long
def test_a_budget_over_a_format_of_one_width(tiny_folder: Path, tmp_path: Path) -> None:
    words = ("bits=[4]", "format=nf4", "group_size=16", "budget=5.1", "baseline=false")
    record = do(configured(tiny_folder, tmp_path, *words, "eval.divergence=false"))
    assert record.status == "done" and record.bits_per_weight == 5.0
