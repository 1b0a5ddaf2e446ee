"""Which runs belong together, and which are kept apart."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from records import leave

from analysis import load
from analysis.dashboard.payload import runs_payload
from analysis.groups import Group, groups, recipe, settings, twins
from analysis.tables import perplexity
from harness.settings.said import worded


def test_settings_are_those_of_the_command_line() -> None:
    config = {"seed": 1, "eval": {"x": 1}, "qep": {"alpha": 1.0, "skip": ["a", "b"], "over": {}}}
    flat = settings(config | {"on": True, "none": None})
    assert flat == {
        "qep.alpha": "1",
        "qep.skip": "[a,b]",
        "qep.over": "{}",
        "on": "true",
        "none": "null",
    }
    assert recipe(flat) == recipe(settings({"qep": config["qep"], "on": True, "none": None}))
    qep = {"alpha": 0.5, "overrides": {"*.o_proj": 1.0, "*.down_proj": 0.25}}
    assert settings({"qep": qep}) == {
        "qep.alpha": "0.5",
        "qep.overrides": "{*.o_proj:1,*.down_proj:0.25}",
    }
    assert settings({"qep": qep | {"overrides": {}}})["qep.overrides"] == "{}"
    assert recipe(flat) != recipe(flat | {"qep.alpha": "0.5"})


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration.windows": 32},
        {"method.damping": 0.1},
        {"grid.range._target_": "harness.ranges.mse.MSE"},
        {"qep.statistics": "reference"},
        {"model.dtype": "bfloat16"},
    ],
)
def test_only_seeds_are_averaged(tmp_path: Path, changes: dict[str, object]) -> None:
    plain: dict[str, object] = {"grid.range._target_": "harness.ranges.minmax.MinMax"}
    for seed, changed in enumerate((plain, plain, plain | changes)):
        own = ["range"] if changed == plain else []
        about = {"own": own}
        leave(tmp_path, perplexity=10.0 * 2**seed, seed=seed, changes=changed, about=about)
    found = groups(load(tmp_path).runs, "perplexity/wiki")
    assert sorted(sorted(one.values.values()) for one in found) == [[10.0, 20.0], [40.0]]
    table = perplexity.build(load(tmp_path))
    assert table is not None
    key, value = next(iter(changes.items()))
    said = table.markdown()
    words = "| mse |" if key.endswith("_target_") else worded(key, str(value))
    assert words in said and "14.1 ± 6.9 (n=2)" in said


def test_other_tokens_and_other_checkpoints_are_kept_apart(tmp_path: Path) -> None:
    leave(tmp_path, perplexity=10.0)
    leave(tmp_path, perplexity=20.0, seed=1, hashes={"wiki": "11111111"})
    leave(tmp_path, perplexity=30.0, seed=2, hashes={"model": "22222222"})
    table = perplexity.build(load(tmp_path))
    assert table is not None and len(table.rows) == 3
    assert (
        "tokens of wiki 11111111" in table.markdown() and "checkpoint 22222222" in table.markdown()
    )
    assert table.markdown().count("**") == 6  # nobody is better than what was measured otherwise


def held(model: str = "a", calibration: str = "b", text: str = "c") -> dict[str, str]:
    """What the files of a run held."""
    return {
        "model.path": model * 64,
        "calibration.path": calibration * 64,
        "eval.perplexity.corpora.wiki.path": text * 64,
    }


PATHS = {"model.path": "/models/m", "calibration.path": "/texts/cal.txt"}


def test_two_contents_of_one_path_are_never_one_group(tmp_path: Path) -> None:
    for seed, contents in enumerate((held(), held(), held(calibration="d"), held(model="e"))):
        leave(tmp_path, perplexity=10.0 + seed, seed=seed, contents=contents, changes=PATHS)
    frames = load(tmp_path)
    values = [sorted(one.values) for one in groups(frames.runs, "perplexity/wiki")]
    assert sorted(values) == [[0, 1], [2], [3]]
    assert set(frames.runs["model"]) == {"m@aaaaaaaa", "m@eeeeeeee"}
    table = perplexity.build(frames)
    assert table is not None and "calibration path cal.txt@dddddddd" in table.markdown()
    assert "m@eeeeeeee" in table.markdown()
    numbers = runs_payload(frames)["recipes"]
    assert [numbers[0] == one for one in numbers] == [True, True, False, False]


def test_the_same_content_at_another_path_is_one_group(tmp_path: Path) -> None:
    elsewhere = {"model.path": "/elsewhere/m", "calibration.path": "cal.txt"}
    for seed, changes in enumerate((PATHS, elsewhere)):
        leave(tmp_path, perplexity=10.0, seed=seed, contents=held(), changes=changes)
    (group,) = groups(load(tmp_path).runs, "perplexity/wiki")
    assert sorted(group.values) == [0, 1] and group.model == "m"


def test_a_run_that_failed_on_another_text_is_not_lost_here(tmp_path: Path) -> None:
    leave(tmp_path, perplexity=10.0, contents=held())
    for seed, text in enumerate("cd", 1):
        contents = held(text=text)
        leave(tmp_path, seed=seed, status="failed", error={"type": "E", "message": "e"},
              contents=contents)  # fmt: skip
    (group,) = groups(load(tmp_path).runs, "perplexity/wiki")
    assert group.lost == {1: "failed"}


def test_a_class_is_the_same_wherever_its_file_lies(tmp_path: Path) -> None:
    for seed, room in enumerate(("", "inputs.")):
        target = {"model._target_": f"harness.{room}models.AssetModel"}
        leave(tmp_path, perplexity=10.0, seed=seed, changes=target)
    assert len(groups(load(tmp_path).runs, "perplexity/wiki")) == 1


def test_the_same_run_under_two_evaluations_counts_once(tmp_path: Path) -> None:
    leave(tmp_path, perplexity=10.0, finished="2026-01-01")
    leave(tmp_path, perplexity=11.0, finished="2026-01-02", changes={"eval.zeroshot": 1})
    (group,) = groups(load(tmp_path).runs, "perplexity/wiki")
    assert group.values == {0: 11.0}


def test_auto_prefers_the_twin_that_set_the_same_windows_aside(tmp_path: Path) -> None:
    leave(tmp_path, alpha="auto", perplexity=5.0)
    leave(tmp_path, alpha=0.0, perplexity=9.0)
    leave(tmp_path, alpha=0.0, perplexity=8.0, changes={"calibration.holdout": 4})
    ((_, twin),) = twins(groups(load(tmp_path).runs, "perplexity/wiki"))
    assert twin.mean == 8.0


def test_equal_values_of_several_seeds_do_not_spread() -> None:
    group = Group("m", "rtn", 3, None, "0", {}, values={0: 419.1, 1: 419.1, 2: 419.1})
    assert group.std == 0.0
    assert math.isnan(replace(group, values={0: 1.0}).std)
    assert replace(group, values={0: 1.0, 1: 3.0}).std == pytest.approx(2**0.5)


def test_perplexities_are_averaged_as_logarithms() -> None:
    group = Group("m", "rtn", 3, None, "0", {}, values={0: 10.0, 1: 40.0}, logarithmic=True)
    assert group.mean == pytest.approx(20.0)
    assert group.std == pytest.approx(20.0 * math.log(4) / 2**0.5)
    assert replace(group, values={0: 13.240590380592273}).mean == 13.240590380592273
    assert replace(group, logarithmic=False).mean == 25.0


def test_bits_under_a_budget_are_a_row_of_their_own(tmp_path: Path) -> None:
    leave(tmp_path, perplexity=10.0)
    leave(tmp_path, perplexity=9.0, seed=1, about={"bits": 3.1}, changes={"grid.bits": "auto"})
    table = perplexity.build(load(tmp_path))
    assert table is not None
    assert [row[0].text for row in table.rows] == ["3.1", "3"]
