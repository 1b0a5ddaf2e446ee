"""Sweep files: every parameter exists, every value composes, W&B's grid is that of the experiment."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import CONF, ROOT
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from harness.command.cli import plan_jobs
from harness.settings.config import Config, ConfigError

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
EXPERIMENTS = sorted(CONF.glob("experiment/sweep_*.yaml"))


def parameters(file: Path) -> dict[str, list[Any]]:
    """The values of every parameter of a W&B sweep."""
    found = yaml.safe_load(file.read_text())["parameters"]
    for name, parameter in found.items():
        assert set(parameter) in ({"value"}, {"values"}), f"{name}: not a grid"
    return {name: one.get("values", [one.get("value")]) for name, one in found.items()}


def agent_words(values: dict[str, Any]) -> list[str]:
    """The arguments that W&B's own code makes of one point of the grid."""
    made = create_sweep_command_args({"args": {name: {"value": v} for name, v in values.items()}})
    return list(made["args_no_hyphens"])


@cache
def planned(name: str) -> list[Config]:
    """The jobs of an experiment."""
    return plan_jobs(CONF, ["-m", f"experiment=sweep_{name}"])


def place(config: Config) -> tuple[str, str, str, str]:
    """What makes a run that run, without a look at the hub."""
    return config.set, config.stem, json.dumps(config.identity()), config.device


def test_every_file_has_its_experiment() -> None:
    names = {f"sweep_{path.stem}" for path in FILES}
    assert names == {path.stem for path in EXPERIMENTS} and names


@pytest.mark.long
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_an_agent_and_the_experiment_do_the_same_runs(file: Path) -> None:
    expected = planned(file.stem)
    values = parameters(file)
    words = [agent_words({name: one})[0] for name, each in values.items() for one in each]
    joined = {name: ",".join(word.partition("=")[2] for word in words if word.startswith(f"{name}="))
              for name in values}  # fmt: skip
    # All points of the grid in one go, as a Hydra sweep over W&B's own words; and one of them alone.
    started = plan_jobs(CONF, ["-m", *(f"{name}={one}" for name, one in joined.items())])
    assert len(started) == math.prod(map(len, values.values())) > 1
    last = {name: each[-1] for name, each in values.items()}
    assert place(plan_jobs(CONF, agent_words(last))[0]) == place(started[-1])
    assert len({one.stem for one in expected}) == len(expected)
    assert sorted(map(place, started)) == sorted(map(place, expected))
    assert {config.tracker.mode for config in started} == {"online"}
    assert {config.set for config in expected} == {f"sweep_{file.stem}"}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_first_lines_are_the_commands(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    assert content["program"] == "run.py" and (ROOT / content["program"]).exists()
    assert content["method"] == "grid" and content["name"] == file.stem
    assert content["command"] == [
        "${env}", "${interpreter}", "${program}", "${args_no_hyphens}"
    ]  # fmt: skip
    assert create_sweep_command(content["command"]) == content["command"]
    first, second, *_ = file.read_text().splitlines()
    assert first.startswith(f"# wandb sweep sweeps/{file.name}")
    assert second.startswith(f"# python run.py -m experiment=sweep_{file.stem} ")
    experiment = (CONF / "experiment" / f"sweep_{file.stem}.yaml").read_text().splitlines()
    assert experiment[1] == f"# python run.py -m experiment=sweep_{file.stem}"


def test_a_parameter_that_does_not_exist_is_found() -> None:
    with pytest.raises(ConfigError, match="did you mean 'qep.alpha'"):
        plan_jobs(CONF, ["qep.alpa=0.5"])


def test_the_grids_are_those_that_were_asked_for() -> None:
    def axes(name: str) -> dict[str, set[Any]]:
        jobs = planned(name)
        return {
            "method": {one.method_name for one in jobs},
            "bits": {one.axes.said.bits for one in jobs},
            "alpha": {one.qep.alpha for one in jobs},
            "group_size": {one.axes.said.group_size for one in jobs},
        }

    example = axes("example")
    assert example["method"] == {"gptq", "rtn"}
    assert example["bits"] == {2, 3, 4} and example["alpha"] == {0.0, 0.5, 1.0}
    assert axes("alpha")["alpha"] == {round(step / 10, 1) for step in range(11)}
    for name, group in (("paper", 64), ("paper_7b", 128)):
        paper = axes(name)
        assert paper["method"] == {"rtn", "gptq", "awq", "quantease", "qqa"}
        assert paper["bits"] == {4, 3, 2} and paper["alpha"] == {0.0, 0.5}
        assert paper["group_size"] == {None, group}
