"""Quantise, measure, record: ``python run.py method=gptq bits=3 qep.alpha=0.5`` (``--help`` lists all).

``-m`` sweeps: ``python run.py -m method=gptq,rtn bits=2,3,4 qep.alpha=0,0.5,1``.
"""

import gc
import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

# Before torch loads. Large pages for large tensors, where the system offers them: fewer page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Threads sleep while they wait: on a busy machine they would spin against those that have work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CONF = Path(__file__).parent / "conf"
# What Hydra itself answers, with words that start with a dash; no other of them is anything here.
ANSWERS = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
ANSWERS |= {"--shell-completion", "-sc"}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> str:
    """One job of the sweep; returns the name of its run."""
    from harness.command import cli

    return cli.run_job(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


if __name__ == "__main__":
    if any(word.partition("=")[0] in ANSWERS for word in sys.argv[1:]):
        job()
        sys.exit()
    gc.disable()  # while libraries load: none of it is garbage, and to look takes a second
    import harness.pipeline  # noqa: F401
    from harness.command import cli

    gc.freeze()
    gc.enable()
    sys.exit(cli.main(job.__wrapped__, CONF, sys.argv[1:]))  # the task inside Hydra's decorator
