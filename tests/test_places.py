"""What is published of a run names no folder of the machine that it was made on."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import pytest
import yaml
from runs import ROOT, configured, do

from harness.records import places
from harness.records.places import unplaced, without_folders
from harness.records.record import read_record

HASH = "0123456789abcdef"


def test_a_traceback_says_files_of_the_program_of_python_and_of_the_user_by_short_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(sys, "prefix", "/home/me/qep/.venv")
    monkeypatch.setattr(places, "PROGRAM", Path("/home/me/qep"))
    files = {
        "/home/me/qep/harness/pipeline.py": "harness/pipeline.py",
        "/home/me/qep/.venv/lib/torch.py": "…/lib/torch.py",
        "/home/me/mine.py": "~/mine.py",
        "/mnt/home/me/mine.py": "/mnt/home/me/mine.py",
    }
    trace = "".join(f'  File "{one}", line 1\n' for one in files)
    assert without_folders(trace) == "".join(f'  File "{one}", line 1\n' for one in files.values())


def test_a_failed_run_s_record_has_no_place_of_the_program(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(
        tiny_folder, tmp_path, "method=rtn", "baseline=false", "eval.divergence=false"
    )
    monkeypatch.setattr(type(config.method), "quantize", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        do(config)
    assert f'"{ROOT}{os.sep}harness' in "".join(traceback.format_exception(caught.value))
    error = read_record(config.directory).error
    assert error is not None and error["type"] == "ZeroDivisionError"
    assert '"harness/pipeline.py"' in error["traceback"] and str(ROOT) not in error["traceback"]


def test_files_are_named_by_what_they_held() -> None:
    config = {
        "model": {"path": "/home/me/my llama", "name": "llama"},
        "calibration": {"path": "owner/data"},
        "own": {"path": "cal.txt", "other": "~/notes.txt"},
        "eval": {"z": {"tasks": ["piqa", "/data/quiz.jsonl"], "include": "/home/me/tasks"}},
        "quantize": {"include": ["*.q_proj"]},
        "alpha": 0.5,
    }
    keys = ("model.path", "own.path", "eval.z.tasks", "eval.z.include")
    contents = dict.fromkeys(keys, HASH) | {"calibration.path": f"owner/data@{HASH}"}
    command = (
        "python run.py -m 'model.path=/home/me/my llama' calibration.path=owner/data own.path=cal.txt "
        "'eval.tasks=[piqa,/data/quiz.jsonl]' eval.include=/home/me/tasks --config-dir /home/me/conf "
        "alpha=0.5 page=https://a.b/c"
    )
    said, plain = unplaced(command, config, contents)
    assert plain == {
        "model": {"path": "my llama@01234567", "name": "llama"},
        "calibration": {"path": "owner/data@01234567"},
        "own": {"path": "cal.txt@01234567", "other": "…/notes.txt"},
        "eval": {"z": {"tasks": ["piqa", "quiz.jsonl@01234567"], "include": "tasks@01234567"}},
        "quantize": {"include": ["*.q_proj"]},
        "alpha": 0.5,
    }
    assert said == (
        "python run.py -m 'model.path=my llama@01234567' calibration.path=owner/data@01234567 "
        "own.path=cal.txt 'eval.tasks=[piqa,quiz.jsonl@01234567]' "
        "eval.include=tasks@01234567 --config-dir …/conf alpha=0.5 page=https://a.b/c"
    )


@pytest.mark.long
def test_the_card_of_a_checkpoint_names_no_folder(tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(
        tiny_folder,
        tmp_path,
        "method=rtn",
        "baseline=false",
        "eval.divergence=false",
        "save=dense",
    )
    record = do(config)
    card = (config.directory / "dense" / "README.md").read_text()
    assert str(tiny_folder) in record.command and str(tiny_folder) not in card
    model = f"tiny@{record.contents['model.path'][:8]}"
    assert f" model.path={model} " in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert settings["model"]["path"] == model
    settings["model"]["path"] = record.config["model"]["path"]
    assert settings["method"] == record.config["method"]
