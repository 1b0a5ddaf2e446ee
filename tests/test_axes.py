"""The axes of a run: said on the command line, of all linears or of some, and from outside the package."""

from __future__ import annotations

import itertools
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import CONF, configured, do, words

from harness import allocation
from harness.allocation import BudgetError, Candidate, allocate
from harness.command.checks import checks
from harness.command.cli import plan_jobs
from harness.records.record import LAYERS, read_rows
from harness.settings.config import Config, ConfigError

QUICK = ("baseline=false", "eval.divergence=false")


def rows(config: Config) -> dict[str, dict]:
    """The rows of a run's linears, by name, once it is done."""
    do(config)
    return {row["name"]: row for row in read_rows(config.directory / LAYERS)}


def refused(config: Config, said: str) -> None:
    problem = next(checks([config]))
    assert said in problem and "\n" not in problem


def test_what_belongs_to_a_method_is_the_same_run_however_it_is_said(
    tiny_folder: Path, tmp_path: Path
) -> None:
    def name(*more: str) -> str:
        return configured(tiny_folder, tmp_path, *more).run_id

    assert name("method=gptq") == name("range=minmax", "format=int", "transform=none")
    quip = ("transform=[rescale,orthogonal]", "transform.orthogonal.sides=both", "range=rms")
    assert name("method=quip") == name("method=quip", "format=midrise", *quip)
    others = [("range=mse",), ("transform=hadamard",), ("scales=float32",), ("refit=round",)]
    others += [
        ("+overrides={*.k_proj: {bits: 4}}",),
        ("qep.target=residual",),
        ("symmetric=true",),
    ]
    assert len({name(*more) for more in [(), *others]}) == len(others) + 1
    assert name("qep.alpha=0") == name("qep.alpha=0", "qep.target=residual")
    slug = configured(
        tiny_folder, tmp_path, "bits=4", "format=nf4", "transform=[awq,hadamard]"
    ).slug
    assert slug == "tiny-gptq-w4-nf4-awq+hadamard-a0.5"


def test_awq_is_its_parts(tiny_folder: Path, tmp_path: Path) -> None:
    plain = "{*q_proj: {range: minmax}, *k_proj: {range: minmax}}"
    parts = ("method=rtn", "transform=awq", "range=loss", f"+overrides={plain}")
    one, two = (
        do(configured(tiny_folder, tmp_path, *QUICK, *more)) for more in (("method=awq",), parts)
    )
    assert one.metrics == two.metrics and one.bits_per_weight == two.bits_per_weight
    plain_rtn = do(configured(tiny_folder, tmp_path, *QUICK, "method=rtn"))
    assert plain_rtn.metrics != one.metrics


def test_some_linears_have_axes_of_their_own(tiny_folder: Path, tmp_path: Path) -> None:
    said = "{*_proj: {bits: 4}, *.k_proj: {bits: 8, group_size: 16, transform: hadamard, range: mse}, " \
        "*.0.*.k_proj: {bits: 5}}"  # fmt: skip
    found = rows(configured(tiny_folder, tmp_path, *QUICK, f"+overrides={said}"))
    bits = {name: row["bits"] for name, row in found.items()}
    assert {bit for name, bit in bits.items() if "k_proj" not in name} == {4}
    keys = sorted(name for name in bits if "k_proj" in name)
    assert [bits[name] for name in keys] == [5, 8, 8]
    for name, row in found.items():  # a scale and a zero a group, and a seed of the basis
        own = "k_proj" in name
        groups = row["columns"] // 16 if own else 1
        stored = row["bits"] * (row["columns"] + groups) + 16 * groups
        total = stored * row["rows"] + row["basis_bits"]
        assert row["bits_per_weight"] == pytest.approx(total / (row["rows"] * row["columns"]))
        assert (row["basis_bits"] > 0) == (row["online_flops"] > 0) == own


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("+overrides={*.q_prj: {bits: 4}}", "overrides[*.q_prj]: no linear that is quantised has such a"),
        ("+overrides={*.k_proj: {group_size: 5}}", "group_size=5: does not divide the"),
        ("bits=auto budget=2", "budget=2: the fewest bits that these linears can"),
        ("bits=auto budget=5 calibration.windows=1", "bits=auto: needs two calibration windows"),
        ("bits=[3,4] budget=3", "budget=3: the fewest bits that these linears can"),
    ],
)  # fmt: skip
def test_what_the_model_s_linears_do_not_fit_is_said_before_it_loads(
    more: str, said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    place = [more] if more.startswith("+") else more.split()
    refused(configured(tiny_folder, tmp_path, *QUICK, *place), said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["+overrides={*.k_proj: {bit: 4}}"], r"overrides\[\*.k_proj\].bit: no such option; did you mean"),
        (["+overrides={*.k_proj: {bits: 9}}"], r"overrides\[\*.k_proj\]: bits=9: allowed are 2 to 8"),
        (["+overrides={*.k_proj: {range: mae}}"], r"overrides\[\*.k_proj\].range='mae': allowed are"),
        (["+overrides={*.k_proj: 4}"], r"overrides\[\*.k_proj\]=4: want a mapping"),
        (["bits=auto"], "set budget=3.25, say"),
        (["budget=3.25"], "budget=3.25: belongs to bits=auto"),
        (["bits=[]", "budget=3"], r"bits=\[\]: want at least one number"),
        (["bits=auto", "budget=-1"], "budget=-1: must be positive"),
        (["bits=3", "format=nf4"], "bits=3: format=nf4 has 4 bits"),
        (["bits=auto", "format=nf4", "budget=4.5"], "bits=2: format=nf4 has 4"),
        (["format=mxfp4", "group_size=64"], "group_size=64: format=mxfp4 has groups of 32"),
        (["transform=hadamrd"], "transform=hadamrd: allowed are .*did you mean 'hadamard'"),
        (["transform=[hadamard,nothing]"], "transform"),
        (["transform=hadamard", "transform.hadamard.sides=in"], "transform.hadamard.sides='in'"),
        (["range=mse", "range.norm=0"], "range.norm=0.0: allowed are positive numbers"),
        (["mse=true"], "mse: no such option"),
        (["scales=float8"], "scales='float8': input should be 'float16' or 'float32'"),
        (["range=rms", "refit=scales"], "refit=scales: range=rms has one scale for all rows"),
        (["qep.target=stream"], "qep.target='stream': input should be 'input' or 'residual'"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_can_not_be_is_one_line(
    more: list[str], said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        configured(tiny_folder, tmp_path, *QUICK, *more)
    assert "\n" not in str(caught.value)


@given(st.lists(st.lists(st.tuples(st.integers(0, 50), st.integers(10, 60)), min_size=1, max_size=3),
                min_size=1, max_size=5), st.floats(0.5, 6))  # fmt: skip
def test_bits_under_a_budget_are_the_best_of_all_choices(
    drawn: list[list[tuple[int, int]]], budget: float
) -> None:
    candidates = {
        str(at): [Candidate(bits, loss, storage) for bits, (loss, storage) in enumerate(some)]
        for at, some in enumerate(drawn)
    }
    weights = 10 * len(drawn)
    choices = itertools.product(*candidates.values())
    fitting = [one for one in choices if sum(part.storage for part in one) <= budget * weights]
    if not fitting:
        with pytest.raises(BudgetError, match="the fewest bits that these linears can have"):
            allocate(candidates, weights, budget)
        return
    found = allocate(candidates, weights, budget)
    chosen = [candidates[name][bits] for name, bits in found.items()]
    assert sum(one.storage for one in chosen) <= budget * weights
    best = min(sum(part.loss for part in one) for one in fitting)
    assert sum(one.loss for one in chosen) == pytest.approx(best)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8, 1e-12])
def test_small_losses_are_told_apart_as_large_ones_are(scale: float) -> None:
    draw = random.Random(0)
    for _ in range(20):
        candidates = {
            str(at): [
                Candidate(
                    bits, scale * draw.uniform(0.5, 2) * 4.0 ** (2 - bits), size * (bits + 1)
                )
                for bits in (2, 3, 4)
            ]
            for at, size in enumerate(draw.choices((32, 64, 128), k=5))
        }
        weights = sum(some[0].storage // 3 for some in candidates.values())
        budget = 3 + 2 * draw.random()
        choices = itertools.product(*candidates.values())
        fitting = [one for one in choices if sum(part.storage for part in one) <= budget * weights]
        best = min(sum(part.loss for part in one) for one in fitting)
        found = allocate(candidates, weights, budget)
        loss = sum(candidates[name][bits - 2].loss for name, bits in found.items())
        assert loss == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("over", [1, 100, 1000])
def test_a_budget_is_kept_to_the_bit_by_large_models(over: int) -> None:
    """The solver's tolerance is 2,000 bits here: what exceeds the budget by less seems to fit it."""
    size = 10**9
    two, three, four = 2 * size, 3 * size, 4 * size
    linear = [Candidate(2, 2.0, two), Candidate(3, 0.5, three - 10_000), Candidate(4, 0.1, four)]
    candidates = {"a": linear, "b": [*linear[:2], Candidate(4, 0.0, three + 10_000 + over)]}
    assert allocate(candidates, 2 * size, 3.0) == {"a": 3, "b": 3}
    least = {"a": [linear[0], Candidate(3, 0.1, two + over)], "b": linear[:1]}
    assert allocate(least, 2 * size, 2.0) == {"a": 2, "b": 2}
    assert allocate(least, 2 * size, 2.0 + over / (2 * size)) == {"a": 3, "b": 2}


@pytest.mark.parametrize("status", [1, 4])
def test_a_solver_that_fails_after_a_retry_is_no_choice(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fewest bits are chosen where nothing else is proved to fit, never for a failure."""
    over = [np.array([0.0, 1.0]), None]
    answers = [SimpleNamespace(x=x, status=status, message="it failed") for x in over]
    monkeypatch.setattr(allocation, "milp", lambda *_, **__: answers.pop(0))
    candidates = {"a": [Candidate(2, 1.0, 20), Candidate(3, 0.5, 31)]}
    with pytest.raises(BudgetError, match="no choice of bits was found .it failed"):
        allocate(candidates, 10, 3.0)


def test_a_budget_is_kept_and_spent_where_it_counts(tiny_folder: Path, tmp_path: Path) -> None:
    more = (*QUICK, "bits=auto", "budget=4.7", "method=gptq")
    config = configured(tiny_folder, tmp_path, *more)
    found = rows(config)
    assert len({row["bits"] for row in found.values()}) > 1
    record = do(config)
    assert 4.3 < record.bits_per_weight <= 4.7 and record.summary["bits"] == 4.7
    again = configured(tiny_folder, tmp_path / "again", *more)
    assert {name: row["bits"] for name, row in rows(again).items()} == {
        name: row["bits"] for name, row in found.items()
    }
    # linears whose bits are said are not chosen for, and count
    said = configured(tiny_folder, tmp_path, *more, "+overrides={*.o_proj: {bits: 6}}")
    fixed = rows(said)
    assert {row["bits"] for name, row in fixed.items() if "o_proj" in name} == {6}
    assert do(said).bits_per_weight <= 4.7


def test_the_residual_stream_is_the_target_of_those_that_write_to_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    def run(*more: str) -> dict[str, dict]:
        return rows(configured(tiny_folder, tmp_path, *QUICK, "bits=3", *more))

    found, plain = run("qep.target=residual"), run()
    for name, row in found.items():
        writes = name.endswith(("o_proj", "down_proj"))
        assert row["target"] == ("residual" if writes else "input")
        assert plain[name]["target"] == "input"
    skipped = [name for name in found if name.endswith("down_proj")]
    assert all(plain[name]["alpha"] == 0 and found[name]["alpha"] == 0.5 for name in skipped)
    auto = run("qep.target=residual", "qep.alpha=auto", "calibration.holdout=2")
    assert any(0 < auto[name]["alpha"] <= 1 for name in skipped)


OUTSIDE = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.formats.base import TableFormat, stored_scale
from harness.numerics.basis import Diagonal
from harness.ranges.base import Fit, extremes
from harness.transforms.base import Found


@dataclass(frozen=True)
class Doubled:
    needs: ClassVar[frozenset[str]] = frozenset()
    factor: float = 2.0

    def find(self, weights, statistics, spec):
        return Found(Diagonal(torch.full_like(statistics.hessian[0], self.factor), 16))

    def bits(self, rows, columns):
        return 16 * columns

    def flops(self, rows, columns):
        return 0.0


@dataclass(frozen=True)
class Halved:
    whole: ClassVar[bool] = False

    def fit(self, weight, form, hessian):
        lo, hi = extremes(weight)
        return Fit(*form.bounded(lo / 2, hi / 2))

    def flops(self, rows, columns, size):
        return 0.0


@dataclass(frozen=True)
class Ternary(TableFormat):
    values: ClassVar = (-1.0, 0.0, 1.0)

    @property
    def codebook(self):
        return self._codebook(scale_bits=16)

    def stored(self, scale):
        return stored_scale(scale, "float16")
"""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A configuration folder with a transform, a range and a format of somebody else's."""
    (tmp_path / "outside_axes.py").write_text(OUTSIDE)
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    target = "_target_: outside_axes"
    (conf / "transform" / "doubled.yaml").write_text(
        f"doubled:\n  {target}.Doubled\n  factor: 2.0\n"
    )
    (conf / "range" / "halved.yaml").write_text(f"{target}.Halved\n")
    (conf / "format" / "ternary.yaml").write_text(
        f"# @package _global_\nbits: 2\nformat:\n  {target}.Ternary\n"
    )
    sys.path.insert(0, str(tmp_path))
    yield conf
    sys.path.remove(str(tmp_path))
    sys.modules.pop("outside_axes", None)


def test_a_part_from_outside_is_one_file_and_one_yaml(
    outside: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    def run(*more: str) -> dict[str, dict]:
        line = words(tiny_folder, tmp_path, *QUICK, "qep.alpha=0", *more)
        return rows(plan_jobs(outside, line)[0])

    plain, halved = run("method=rtn"), run("method=rtn", "range=halved")
    assert all(halved[name]["local_error"] != plain[name]["local_error"] for name in plain)
    ternary = run("method=gptq", "format=ternary", "transform=[doubled,hadamard]")
    for row in ternary.values():
        count = row["rows"] * row["columns"]
        stored = 2 * count + 16 * row["rows"] + row["basis_bits"]
        assert row["bits_per_weight"] == pytest.approx(stored / count)
        assert row["basis_bits"] > 16 * row["columns"]
