"""Where a run was made: package versions, device, threads, and the commit of the program."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from harness.numerics import device
from harness.numerics.gpu.choice import described
from harness.settings.config import Config

PACKAGES = ("torch", "transformers", "numpy", "numba", "datasets", "lm-eval", "wandb", "qep-bench")


def environment(config: Config) -> dict[str, Any]:
    """Package versions, device and its column loops, threads, the tokens of a batch.

    All that figures depend on besides the run's identity, for it moves only the order of summation; nothing
    that identifies a person or a host.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    if config.device.startswith("cuda"):
        versions["column_loops"] = described(torch.device(config.device))
    return {
        "python": platform.python_version(),
        **versions,
        "device": device.described(config.device),
        "precision": config.precision,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "batch_tokens": config.batch_tokens,
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@cache
def git_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the checkout around ``folder``, ``+`` where tracked files differ; or nothing.

    Records, which a run itself may change, do not count as differences. As of the first run of a
    process: what is changed or committed while a sweep goes on is not what runs in it.
    """
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")  # installed below somebody else's repository: no
        commit = git("rev-parse", "HEAD")
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", ":(top,exclude)results"
        )
        return commit + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
