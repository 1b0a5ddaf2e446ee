"""Bootstrap intervals of differences on the same windows, against a literal twin and the truth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from records import leave
from scipy import stats

from analysis import load
from analysis.compare import compare, intervals, paired
from analysis.tables import real


def literal_interval(values: list[list[float]], resamples: int, seed: int) -> tuple[float, float]:
    """Seeds by windows: one resample after the other, percentiles by hand."""
    seeds, n = len(values), len(values[0])
    generator = np.random.default_rng(seed)
    mean = sum(map(sum, values)) / (seeds * n)
    widened = math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
    moved = []
    for _ in range(resamples):
        counts = generator.multinomial(n, [1 / n] * n)
        drawn = sum(
            c * sum(column) / seeds
            for c, column in zip(counts, zip(*values, strict=True), strict=True)
        )
        moved.append(mean + widened * (drawn / n - mean))
    if seeds > 1:
        own = [sum(row) / n for row in values]
        error = math.sqrt(sum((one - mean) ** 2 for one in own) / (seeds - 1) / seeds)
        order = generator.permutation(resamples)
        for at in range(resamples):
            moved[at] += error * stats.t.ppf((order[at] + 0.5) / resamples, seeds - 1)
    moved.sort()

    def percentile(share: float) -> float:
        at = share * (resamples - 1)
        below = math.floor(at)
        above = min(below + 1, resamples - 1)
        return moved[below] + (at - below) * (moved[above] - moved[below])

    return percentile(0.025), percentile(0.975)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_intervals_equal_the_literal_twin(monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    differences = np.random.default_rng(1).normal(0.1, 1.0, (seeds, 7, 3))
    found = intervals(differences, resamples=200, seed=5)
    monkeypatch.setattr("analysis.compare.CHUNK", 70)  # twenty pieces
    pieces = intervals(differences, resamples=200, seed=5)
    for column in range(3):
        expected = literal_interval(differences[..., column].tolist(), 200, 5)
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-12)
        np.testing.assert_allclose(pieces[:, column], expected, rtol=1e-12)


def test_one_seed_may_leave_out_its_dimension() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1.0, (7, 3))
    np.testing.assert_array_equal(intervals(differences), intervals(differences[None]))


def test_without_windows_the_interval_is_that_of_students_t_over_seeds() -> None:
    own = [0.1, 0.4, 0.2]
    low, high = intervals(np.array(own)[:, None, None])
    half = stats.t.ppf(0.975, 2) * np.std(own, ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(
        (low[0], high[0]), (np.mean(own) - half, np.mean(own) + half), rtol=0.01
    )


@pytest.mark.parametrize(("window", "of_seed"), [(1.0, 0.0), (1.0, 0.2), (0.2, 0.5)])
def test_intervals_over_seeds_and_windows_cover_the_truth(window: float, of_seed: float) -> None:
    random = np.random.default_rng(0)
    trials = 2000
    values = (
        0.3
        + window * random.normal(size=(1, 32, trials))
        + of_seed * random.normal(size=(3, 1, trials))
        + 0.3 * random.normal(size=(3, 32, trials))
    )
    low, high = intervals(values)
    # On the wide side where neither part rules: Student's quantile with two degrees of freedom is large.
    assert 0.935 < ((low <= 0.3) & (high >= 0.3)).mean() < 0.985


@pytest.mark.parametrize(
    ("n", "draw"),
    [
        (32, lambda random, shape: random.normal(0.3, 1.0, shape)),
        (32, lambda random, shape: random.gamma(2.0, 1.0, shape)),
        (100, lambda random, shape: random.choice([-1.0, 0.0, 1.0], shape, p=[0.1, 0.75, 0.15])),
    ],
    ids=["normal", "skewed", "answers"],
)
def test_intervals_cover_the_truth_in_about_95_of_100_trials(n: int, draw: object) -> None:
    trials = 2000
    truth = {"normal": 0.3, "gamma": 2.0, "choice": 0.05}
    random = np.random.default_rng(0)
    values = draw(random, (n, trials))  # type: ignore[operator]
    mean = min(truth.values(), key=lambda one: abs(one - values.mean()))
    low, high = intervals(values)
    covered = ((low <= mean) & (mean <= high)).mean()
    # Standard error of the share: 0.5 points. Skewed means of 32 are a little short of 95.
    assert 0.925 < covered < 0.97


def test_one_window_and_infinite_losses_give_no_interval() -> None:
    assert np.isnan(intervals(np.ones((1, 2)))).all()
    low, high = intervals(np.array([[1.0, math.inf], [1.0, 1.0], [1.0, 1.0]]))
    assert (low[0], high[0]) == (1.0, 1.0) and math.isnan(low[1]) and math.isnan(high[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    base = random.normal(3.0, 0.5, 30)
    right = [1.0] * 20 + [0.0] * 80
    for name, alpha, shift in (("plain", 0.0, 0.0), ("qep", 0.5, -0.3), ("full", 1.0, 0.4)):
        losses = base + shift + random.normal(0, 0.05, 30)
        scores = [1.0] * 30 + [0.0] * 70 if name == "qep" else right
        leave(
            tmp_path,
            alpha=alpha,
            name=name,
            metrics={
                "perplexity/wiki": float(np.exp(losses.mean())),
                "accuracy/quiz": float(np.mean(scores)),
            },
            samples={"loss/wiki": losses.tolist(), "accuracy/quiz": scores},
        )
    return tmp_path


def test_comparisons_are_paired(folder: Path) -> None:
    frames = load(folder)
    better, worse = compare(frames, [[("qep", "plain")], [("full", "plain")]], "loss/wiki")
    ratio = frames.runs.set_index("run")["perplexity/wiki"]
    assert math.exp(better.difference) == pytest.approx(ratio["qep"] / ratio["plain"], rel=1e-12)
    assert better.low < better.difference < better.high < 0 and better.verdict == "better"
    assert worse.low > 0 and worse.verdict == "worse" and worse.n == 30
    assert better.high - better.low < 0.06  # windows differ by 0.5, pairs by 0.07
    (same,) = compare(frames, [[("plain", "plain")]], "loss/wiki")
    assert same.verdict == "unclear" and same.difference == 0
    (right,) = compare(frames, [[("qep", "plain")]], "accuracy/quiz")
    assert right.difference == pytest.approx(0.1) and right.verdict == "better"


def test_other_tokens_are_refused(tmp_path: Path) -> None:
    for name, hashes, windows in (
        ("a", {}, 3),
        ("b", {"wiki": "other"}, 3),
        ("c", {"wiki": ""}, 3),
    ):
        samples = {"loss/wiki": [1.0] * windows}
        leave(tmp_path, name=name, samples=samples, hashes=hashes)
    leave(tmp_path, name="d", samples={"loss/wiki": [1.0]})
    frames = load(tmp_path)
    for first, second in (("a", "b"), ("c", "c"), ("a", "d")):
        with pytest.raises(ValueError, match=f"{first} and {second}: evaluated on different wiki"):
            compare(frames, [[(first, second)]], "loss/wiki")
    with pytest.raises(ValueError, match="a: its record has no samples loss/web"):
        compare(frames, [[("a", "b")]], "loss/web")


def test_pairs_without_samples_are_left_out(folder: Path) -> None:
    leave(folder, "gptq", metrics={"perplexity/wiki": 9.0})
    leave(folder, "gptq", alpha=0.5, perplexity=8.0)
    assert {one.method for one, *_ in paired(load(folder), "loss/wiki")} == {"rtn"}


def test_the_table_says_which_gains_are_real(folder: Path) -> None:
    table = real.build(load(folder))
    assert table is not None
    shown = [[cell.text for cell in row] for row in table.rows]
    assert [(row[0], row[4], row[-1]) for row in shown] == [
        ("wiki", "0.5", "better"),
        ("wiki", "1", "worse"),
        ("accuracy/quiz", "0.5", "better"),
        ("accuracy/quiz", "1", "unclear"),
    ]
    assert shown[2][6:8] == ["100", "+10.0"]
    assert 0.7 < float(shown[0][7]) < 0.78  # exp(-0.3)
