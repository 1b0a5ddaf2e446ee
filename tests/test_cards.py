"""A card of its own for every worker of a sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched import on_standin
from runs import CONF, ROOT, configured, words
from test_launchers import SWEEP, needs, noted

from harness.command import cards, cli
from harness.command.cards import CARDS, VISIBLE, cards_of
from harness.command.checks import checks
from harness.command.compose import compose_jobs
from harness.settings.config import Config, ConfigError

WORKER = "from harness.command.cards import own_card; print(own_card(), flush=True); input()"


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process sees two, with names that are no numbers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv(VISIBLE, "GPU-a,GPU-b")


def on(folder: Path, results: Path, *devices: str) -> list[Config]:
    return [configured(folder, results, f"device={one}") for one in devices]


@pytest.mark.usefixtures("two_cards")
def test_workers_are_told_the_cards_that_this_process_sees(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = on(tiny_folder, tmp_path, "cuda", "cuda")
    assert cards_of(some, 2) == {CARDS: "GPU-a,GPU-b"}
    monkeypatch.delenv(VISIBLE)
    assert cards_of(some, 1) == {CARDS: "0,1"}
    assert cards_of(on(tiny_folder, tmp_path, "cuda:1", "cpu"), 9) == {}
    with pytest.raises(ConfigError) as caught:
        cards_of(some, 3)
    assert str(caught.value) == (
        "workers=3: with device=cuda every worker has a card of its own, and here are 2; "
        "workers=2 takes all"
    )
    with pytest.raises(ConfigError, match=r"^device=cuda,cuda:1: .*device=cuda for all"):
        cards_of(on(tiny_folder, tmp_path, "cuda", "cuda:1"), 2)


def worker(folder: Path) -> subprocess.Popen[str]:
    """A process that takes a card and keeps it until it is let go."""
    environment = {**os.environ, CARDS: "GPU-a,GPU-b", "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def card(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.long
def test_no_two_processes_have_one_card_and_a_dead_one_s_is_free(tmp_path: Path) -> None:
    with worker(tmp_path) as first, worker(tmp_path) as second:
        held = {card(first): first, card(second): second}
        assert held.keys() == {"GPU-a", "GPU-b"}
        with worker(tmp_path) as third:
            held["GPU-b"].kill()
            assert card(third) == "GPU-b"
            third.kill()
        held["GPU-a"].communicate("\n")
    assert not (tmp_path / f"qep-bench-cards-{cards.getpass.getuser()}" / ".GPU-a.lock").exists()


def test_who_is_not_told_of_cards_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CARDS, raising=False)
    monkeypatch.setenv(VISIBLE, "as it was")
    cards.own_card.cache_clear()
    assert cards.own_card() is None and os.environ[VISIBLE] == "as it was"
    cards.own_card.cache_clear()


@pytest.mark.long
@pytest.mark.usefixtures("two_cards")
def test_two_workers_compute_on_two_cards(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("joblib")
    notes = tmp_path / "notes"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    more = ("hydra/launcher=joblib", "device=cuda", "workers=2", "bits=3,4", "model.dtype=float64",
            "tracker._target_=launched.Noting", f"+tracker.path={notes}")  # fmt: skip
    assert cli.main(on_standin, CONF, words(tiny_folder, tmp_path, *SWEEP, *more)) == 0
    found = {one["process"]: one["card"] for one in noted(notes)}
    assert len(found) == 2 and set(found.values()) == {"GPU-a", "GPU-b"}


@pytest.mark.filterwarnings("ignore:[\\s\\S]*is validated against ConfigStore:UserWarning")
def test_other_machines_may_have_cards_that_this_one_lacks(
    tiny_folder: Path, tmp_path: Path
) -> None:
    needs("submitit_local")
    more = ("hydra/launcher=submitit_slurm", "device=cuda:0")
    sweep = compose_jobs(CONF, words(tiny_folder, tmp_path, *SWEEP, *more))
    assert sweep.elsewhere and list(checks(sweep.configs, sweep.elsewhere)) == []
    here = compose_jobs(CONF, words(tiny_folder, tmp_path, *SWEEP, "device=cuda:0"))
    assert not here.elsewhere
    assert "this machine has 0 cuda devices" in next(checks(here.configs, here.elsewhere))
