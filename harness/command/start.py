"""From the command to what it does: says at once that it has started, then loads what that takes.

``python run.py`` and the installed ``qep-bench`` both come here. Libraries take a second or two to
load, so that nothing of theirs may be imported at the top of this file.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import harness
from harness.command.encoding import plain_where_needed

INTERRUPTED = 130
INSPECT = "inspect"  # the first word that is no override: looks at a run instead of making one
HELP = {"--help", "-h"}
# What Hydra itself answers, with words that start with a dash; no other of them is anything here.
ANSWERS = {"--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}


def main() -> int:
    """Does what the command line asks for; returns the exit code."""
    plain_where_needed()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's Ctrl-C
    try:
        return start(sys.argv[1:])
    except KeyboardInterrupt:  # while libraries load; later cli.main has more to say
        return INTERRUPTED


def start(arguments: list[str]) -> int:
    """Imports what is needed for an answer, and gives it."""
    asked = {word.partition("=")[0] for word in arguments}
    if os.getcwd() not in sys.path:  # for methods of one's own; last, so that they hide nothing
        sys.path.append(os.getcwd())
    if arguments[:1] == [INSPECT]:
        from harness.command.inspect import main as inspect

        return inspect(arguments[1:])
    if asked & HELP:
        from harness.command.options import overview

        return overview(conf_folder(), arguments)
    if asked & ANSWERS:
        import hydra

        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()
        return 0
    print(f"qep-bench {harness.__version__}: checks everything before it starts", flush=True)
    # Before torch loads. Large pages for large tensors, where the system has them: fewer page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads sleep while they wait: on a busy machine they would spin against those that have work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()  # while libraries load: none of it is garbage, and to look takes a second
    from harness.command import cli

    gc.freeze()
    gc.enable()
    return cli.main(job, conf_folder(), arguments)


def job(cfg: Any) -> str:
    """One job of a sweep, called by Hydra's launchers in processes of their own; the run's name."""
    from omegaconf import OmegaConf

    from harness.command import cli

    return cli.run_job(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def conf_folder() -> Path:
    """Where the options lie: in the installed package, or in the checkout beside it."""
    package = Path(harness.__file__).parent
    return next(one for one in (package / "conf", package.parent / "conf") if one.is_dir())
