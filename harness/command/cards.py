"""A card of its own for every worker of a sweep on one machine: ``workers=8 device=cuda``.

The process that starts the workers tells them of the cards that it sees. Each takes the first that no
other process of this machine has, keeps it for as long as it lives, and sees no other: to its run it is
``cuda:0``. Cards are held by locks (:mod:`harness.records.locks`), so that a dead worker's is free again
and sweeps side by side share none. Slurm and Ray hand out cards by themselves.
"""

from __future__ import annotations

import atexit
import getpass
import os
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from harness.records.locks import POLL, Lock
from harness.settings.config import Config, ConfigError

CARDS = "QEP_BENCH_CARDS"  # what workers may choose from, as in VISIBLE
VISIBLE = "CUDA_VISIBLE_DEVICES"
ANY = "cuda"  # a card that is not named


def cards_of(configs: Sequence[Config], workers: int) -> dict[str, str]:
    """What tells workers of this machine the cards to choose from; nothing where runs name theirs.

    Raises:
        ConfigError: there are more workers than cards, or some runs name theirs; one line.
    """
    devices = list(dict.fromkeys(one.device for one in configs))
    if ANY not in devices:
        return {}
    if len(devices) > 1:
        raise ConfigError(
            f"device={','.join(devices)}: workers that choose a card and others that are told one "
            f"would meet; device={ANY} for all gives each its own"
        )
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    cards = named.split(",")[:count] if named else [str(one) for one in range(count)]
    if workers > len(cards):
        raise ConfigError(
            f"workers={workers}: with device={ANY} every worker has a card of its own, and here are "
            f"{len(cards)}; workers={len(cards)} takes all"
        )
    return {CARDS: ",".join(cards)}


@cache
def own_card() -> str | None:
    """The card of this process, which sees no other from now on; None where it need not choose.

    Waits until one is free. Has to come before anything asks CUDA.
    """
    if CARDS not in os.environ:
        return None
    folder = Path(tempfile.gettempdir()) / f"qep-bench-cards-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    locks = {card: Lock(folder / card.strip()) for card in os.environ[CARDS].split(",")}
    while True:
        for card, lock in locks.items():
            if lock.take():
                os.environ[VISIBLE] = card
                atexit.register(lock.release)
                return card
        time.sleep(POLL)
