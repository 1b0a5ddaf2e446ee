"""What a recorder finds out about the code that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.records.environment import git_commit


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
