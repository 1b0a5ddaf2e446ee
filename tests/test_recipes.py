"""Recipes: which runs a figure averages, which it keeps apart, and how it names them."""

from __future__ import annotations

from synthetic import entry, made

from analysis.plotting.recipes import RECIPE, labels, recipes


def test_runs_are_averaged_over_seeds_and_over_nothing_else() -> None:
    base = {"method": "quantease", "alpha": 0.5, "perplexity": 20.0}
    different = [
        {},
        {"alpha": 0.0},
        {"alpha": "auto"},
        {"bits": 4},
        {"group_size": 64},
        {"model": "other"},
        {"part": "0:2"},
        {"method": "gptq"},
        {"options": {"iterations": 30}},
        {"options": {"iterations": 30, "act_order": True}},
        {"qep": {"damping": 0.1}},
        {"qep": {"statistics": "reference"}},
        {"calibration": {"windows": 32}},
        {"calibration": {"name": "c4"}},
    ]
    frames = made(*[entry(**base | one, seed=seed) for one in different for seed in (0, 1)])
    groups = recipes(frames.runs, "wiki").groupby(RECIPE)
    assert len(groups) == len(different)
    for _, rows in groups:
        assert rows["recipe"].nunique() == 1 and sorted(rows["seed"]) == [0, 1]


def test_other_evaluation_tokens_or_another_checkpoint_are_kept_apart() -> None:
    one, two, three = (entry(seed=seed) for seed in range(3))
    two.record.hashes["wiki"] = "other"
    three.record.hashes["model"] = "other"
    runs = made(one, two, three).runs
    assert len(recipes(runs, "wiki").groupby(RECIPE)) == 3
    assert len(recipes(runs).groupby(RECIPE)) == 2  # the evaluation has no part in the errors


def test_of_two_runs_with_one_seed_the_later_counts() -> None:
    one, two, other = entry(), entry(), entry(seed=1)
    two.record.run, two.record.finished = "later", "2026"
    two.record.config["eval"] = {}
    assert sorted(recipes(made(one, two, other).runs)["run"]) == sorted(
        ["later", other.record.run]
    )


def test_auto_stands_beside_the_others_though_it_sets_windows_aside() -> None:
    other = {"calibration": {"holdout": 0}}
    runs = [entry(alpha=0.0, **other), entry(alpha=0.5, **other), entry(alpha="auto")]
    assert recipes(made(*runs).runs)["setting"].unique().tolist() == [""]
    runs.append(entry(alpha="auto", calibration={"holdout": 8}))
    assert recipes(made(*runs).runs)["setting"].nunique() == 3  # two ways of auto: not mixed


def test_labels_use_as_few_options_as_tell_rows_apart() -> None:
    rows = [{"c.path": "x", "c.name": "a"}, {"c.path": "y", "c.name": "b"}]
    assert labels(rows) == ["a", "b"]
    assert labels([{"a.size": "1", "b.size": "1"}, {"a.size": "2", "b.size": "1"},
                   {"a.size": "1", "b.size": "2"}]) == [
        "a size 1, b size 1", "a size 2, b size 1", "a size 1, b size 2"]  # fmt: skip
    assert labels([{"a.x": "1"}, {"a.x": "1"}]) == ["", ""]
    assert len(set(labels([{"a.size": "1"}, {"b.size": "1"}, {}]))) == 3
