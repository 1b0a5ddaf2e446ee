"""All that a run imports, for the server that tests fork their processes from."""

import torch

from harness import pipeline
from harness.command import cli, estimate
from harness.evaluate import perplexity, zeroshot
from harness.methods import gptq, rtn

torch.set_num_threads(1)
loaded = (cli, estimate, pipeline, perplexity, zeroshot, gptq, rtn)


def unused(cfg: object) -> None:
    """Stands for the task of Hydra's launchers, which run in processes of their own."""
    raise AssertionError("only launchers call this")
