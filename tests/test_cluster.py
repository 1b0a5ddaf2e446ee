"""A sweep over a real Ray cluster of two nodes on this machine, one of which dies on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import CONF, ROOT, do, words
from test_launchers import noted
from test_resume import leftovers

from harness.command.cli import plan_jobs
from harness.command.cluster import check_nodes
from harness.records.record import read_record
from harness.settings.config import ConfigError

SWEEP = ("-m", "method=rtn", "bits=2,3,4", "qep.alpha=0,1")


@pytest.mark.parametrize(
    ("remote", "said"),
    [
        ({"num_cpus": 4, "num_gpus": 0}, None),
        ({"num_cpus": 5}, "threads=5: no node of 2 has that; at most 4 CPU"),
        (
            {"num_cpus": 1, "num_gpus": 2},
            "hydra.launcher.ray.remote.num_gpus=2: no node of 2 has that; at most 1 GPU",
        ),
        (
            {"num_cpus": 4, "num_gpus": 1},
            "threads=4, hydra.launcher.ray.remote.num_gpus=1: no node of 2 has that together; "
            "at most 4 CPU, 1 GPU",
        ),
    ],
)
def test_what_no_node_can_offer_is_one_line(remote: dict[str, Any], said: str | None) -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]
    if said is None:
        check_nodes(remote, nodes)
        return
    with pytest.raises(ConfigError) as caught:
        check_nodes(remote, nodes)
    assert str(caught.value) == said


@pytest.fixture
def nodes(tmp_path: Path) -> Any:
    """Two nodes of one core each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    cluster = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster, second
    cluster.shutdown()


def begun(nodes: Any, folder: Path, results: Path, notes: Path, *more: str) -> Any:
    """A sweep that has been told of the cluster, from a folder of its own."""
    environment = {
        **os.environ,
        "RAY_ADDRESS": nodes[0].address,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    tracker = ("tracker._target_=launched.Noting", f"+tracker.path={notes}")
    arguments = [*words(folder, results, *SWEEP, "hydra/launcher=ray", *more), *tracker]
    return subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_over_two_nodes_survives_the_death_of_one(
    nodes: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    results, notes = tmp_path / "there", tmp_path / "notes"
    cluster, second = nodes
    process = begun(nodes, tiny_folder, results, notes, "threads=1")
    while process.poll() is None and len(list(results.glob("local/*-rtn-*/record.json"))) < 2:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    assert len({one["process"] for one in noted(notes)}) == 2, "both nodes have been at work"
    cluster.remove_node(second, allow_graceful=False)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    assert "6 jobs: 6 done, 0 skipped, 0 failed" in out
    for config in plan_jobs(CONF, words(tiny_folder, tmp_path / "here", *SWEEP)):
        there = read_record(results / "local" / config.run_id)
        assert there.metrics == do(config).metrics
    assert leftovers(results / "local") == [str(results / "local" / ".hydra")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_more_threads_than_any_node_has_are_refused_before_the_start(
    nodes: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    process = begun(nodes, tiny_folder, tmp_path / "there", tmp_path / "notes", "threads=4")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 2, out + err
    assert err.splitlines()[-1] == "error: threads=4: no node of 2 has that; at most 1 CPU"
    assert not list(tmp_path.glob("there/local/*/config.yaml"))
