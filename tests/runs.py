"""Whole runs on the tiny checkpoint, in this process or as the command line that a person types."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import rich.console

from harness import pipeline
from harness.command.cli import plan_jobs
from harness.command.console import Console
from harness.records.record import Record
from harness.settings.config import Config

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"


def words(folder: Path, results: Path, *more: str) -> list[str]:
    """The command line of a quick run on the tiny checkpoint."""
    return [
        "model=hf",
        f"model.path={folder / 'tiny'}",
        "calibration=text",
        f"calibration.path={folder / 'text.txt'}",
        "calibration.windows=4",
        "calibration.length=16",
        "eval=text",
        f"eval.path={folder / 'text.txt'}",
        "eval.windows=4",
        "eval.length=16",
        "qep.damping=0.1",
        f"results={results}",
        "tracker=none",
        *more,
    ]


def configured(folder: Path, results: Path, *more: str) -> Config:
    return plan_jobs(CONF, words(folder, results, *more))[0]


def quiet_console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(rich.console.Console(file=text, highlight=False, soft_wrap=True)), text


def do(config: Config) -> Record:
    return pipeline.run(config, quiet_console()[0])


def command(
    folder: Path, results: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", *words(folder, results, *more)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
