"""The page against the frames it was made from, and in a browser where there is one."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.dashboard import build
from analysis.dashboard.payload import ELSEWHERE, rounded
from analysis.dashboard.settings import named_apart
from analysis.frames import Entry, Frames, frames
from harness.records.record import Record

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVIL = "</script><script>window.hurt=1</script><img src=x onerror=window.hurt=1>&amp;"


def entry(
    run: str,
    method: str = "rtn",
    bits: int = 3,
    alpha: float | str = 0.0,
    perplexity: float = 20.0,
    blocks: int = 2,
    **summary: Any,
) -> Entry:
    """A run as the harness leaves it, with errors that tell run, block and role apart."""
    record = Record(run, "done", bits_per_weight=bits + 0.03, command=f"python run.py bits={bits}")
    full = method == "none"
    record.summary = {"model": "m", "method": method, "bits": bits, "group_size": None}
    record.summary |= {"alpha": alpha, "seed": 0} | summary
    qep = {"alpha": alpha} if alpha == 0 else {"alpha": alpha, "damping": 1.0}
    record.config = {"method": {"_target_": method}, "grid": {"bits": bits}, "qep": qep, "seed": 0}
    record.metrics = {"perplexity/x": perplexity}
    record.samples = {"loss/x": [perplexity, 1.0]}
    record.seconds = {"total": 12.5}
    depth = 0 if full else blocks
    rows = [
        {
            "name": f"layers.{block}.{role}",
            "block": block,
            "role": role,
            "alpha": 0.5,
            "total_error": perplexity / 1e4 * (1 + block) * (1 + place),
            "local_error": 1e-3,
            "rounding_error": 5e-4,
            "signal": 2.0,
        }
        for block in range(depth)
        for place, role in enumerate(ROLES)
    ]
    curve = [
        {"block": block, "name": f"layers.{block}", "relative_error": 1e-3 * (1 + block)}
        | ({"relative_error_token": 2e-3 * (1 + block)} if run in ("a", "b") else {})
        for block in range(depth)
    ]
    return Entry(record, rows, curve)


def small_frames() -> Frames:
    """A run of every kind: full precision, finite, diverged, failed, and one that means harm."""
    failed = Record("broken", "failed", error={"type": "ValueError", "message": "no such file"})
    failed.summary = {"model": "m", "method": "gptq", "bits": 3, "alpha": 0.5}
    return frames(
        [
            entry("full", "none", 16, perplexity=10.123456789012345),
            entry("a", alpha=0.0, perplexity=30.0),
            entry("b", alpha=0.5, perplexity=20.0),
            entry("c", bits=2, perplexity=math.inf, group_size=64),
            entry("d", "gptq", alpha=0.25, perplexity=math.nan),
            entry("e", "gptq", bits=4, alpha="auto", perplexity=9.5, model="other"),
            entry(EVIL, "gptq", bits=4, perplexity=100.0, model=EVIL),
            Entry(failed),
        ]
    )


@pytest.fixture(scope="module")
def small() -> Frames:
    return small_frames()


def block_of(page: str, name: str) -> str:
    """The text that is packed in the page under ``name``."""
    found = re.search(rf'<script type="application/octet-stream" id="{name}">([^<]*)<', page)
    assert found
    return gzip.decompress(base64.b64decode(found[1])).decode()


def test_every_cell_of_the_runs_is_in_the_page(small: Frames) -> None:
    data = json.loads(block_of(build(small), "runs-data"))
    columns = {column["key"]: column for column in data["columns"]}
    assert columns["perplexity/x"]["kind"] == "number" and columns["alpha"]["kind"] == "text"
    expected = {
        "full": 10.123456789012345,
        "a": 30.0,
        "b": 20.0,
        "c": "Infinity",
        "d": "NaN",
        "e": 9.5,
        EVIL: 100.0,
        "broken": None,
    }
    names = columns["run"]["values"]
    assert dict(zip(names, columns["perplexity/x"]["values"], strict=True)) == expected
    shown = set(columns) | set(data["details"]) - {"said"} | set(ELSEWHERE)
    assert shown == set(small.runs.columns)
    for key, column in columns.items():
        for cell, value in zip(column["values"], small.runs[key], strict=True):
            if isinstance(cell, str) and column["kind"] == "number":
                assert not math.isfinite(value)
            elif cell is None:
                assert value is None or math.isnan(value)
            else:
                assert cell == value
    assert data["details"].pop("said") == [[]] * len(names)  # no two of them differ in a setting
    for key, values in data["details"].items():
        assert values == small.runs[key].tolist()


def recipes() -> Frames:
    """Two recipes of QuantEase that one option tells apart, GPTQ in another basis, full precision."""
    runs = [entry("full", "none", 16, perplexity=10.0)]
    for name, fraction, perplexity in (("plain", 0.0, 89.0), ("sparse", 0.01, 30.0)):
        one = entry(name, "quantease", perplexity=perplexity)
        one.record.config["method"] |= {"outliers": {"fraction": fraction}, "iterations": 20}
        one.record.config["transform"] = {}
        runs.append(one)
    turned = entry("turned", "gptq", perplexity=28.0)
    turned.record.config["method"] |= {"damping": 0.1}
    turned.record.config["transform"] = {"hadamard": {"_target_": "t.Hadamard", "seed": 3}}
    turned.record.summary["own"] = ["format", "range", "overrides"]
    return frames([*runs, turned])


def test_settings_that_differ_are_columns_and_words() -> None:
    data = json.loads(block_of(build(recipes()), "runs-data"))
    columns = {column["key"]: column["values"] for column in data["columns"]}
    names = columns["run"]
    found = {key for key in columns if key.startswith("settings/")}
    # Not the damping, which one method has alone, nor the seed of a basis that no other run has.
    assert found == {"settings/method.outliers.fraction", "settings/transform"}
    assert data["heads"]["settings/method.outliers.fraction"] == "outliers fraction"
    by_run = dict(zip(names, data["details"]["said"], strict=True))
    assert by_run["plain"] == ["no outliers", "no transform"]
    assert by_run["sparse"] == ["1 % outliers", "no transform"]
    assert by_run["full"] == []
    assert named_apart(["method.damping", "qep.damping", "method.sweeps"]) == {
        "method.damping": "method damping",
        "qep.damping": "qep damping",
        "method.sweeps": "sweeps",
    }
    variants = dict(zip(names, columns["variant"], strict=True))
    assert variants["sparse"] == "QuantEase (1 % outliers, no transform)"
    assert variants["turned"] == "GPTQ (transform hadamard)"
    assert data["names"]["method.outliers.fraction"] == "outliers fraction"


def test_errors_are_those_of_the_frames(small: Frames) -> None:
    page = build(small)
    names = small.runs["run"].tolist()
    layers = json.loads(block_of(page, "layers-data"))
    relative = small.layers["total_error"] / small.layers["signal"]
    for index, run in enumerate(names):
        mine = small.layers["run"] == run
        layout = layers["layout"][index]
        keys = layers["layouts"][layout] if layout is not None else []
        rows = small.layers[mine]
        assert keys == rows[["block", "role", "name"]].values.tolist()
        values = [float(value) for value in layers["values"]["total_error"][index]]
        np.testing.assert_allclose(values, relative[mine], rtol=5e-4)
    runs = json.loads(block_of(page, "runs-data"))
    blocks = runs["blocks"]["values"]["relative_error"]
    assert blocks[names.index("a")] == [1e-3, 2e-3] and blocks[names.index("full")] == []
    assert len(runs["blocks"]["layouts"]) == 1 and len(layers["layouts"]) == 1


def test_a_line_over_alpha_joins_what_differs_in_alpha_only(small: Frames) -> None:
    data = json.loads(block_of(build(small), "runs-data"))
    index = {name: place for place, name in enumerate(small.runs["run"])}
    recipes, curves = data["recipes"], data["curves"]
    assert recipes[index["a"]] == recipes[index["b"]] != recipes[index["c"]]
    assert curves[index["a"]] is None and curves[index["b"]] is not None
    assert curves[index["d"]] != curves[index["b"]]


def test_what_a_record_says_never_becomes_markup(small: Frames) -> None:
    page = build(small)
    assert "window.hurt" not in page
    assert page.count("<script") == 5 - 1 and page.count("</script>") == 4
    assert "sha256-" in page and "default-src 'none'" in page


def test_no_runs_is_a_page_too() -> None:
    data = json.loads(block_of(build(frames([])), "runs-data"))
    assert data["curves"] == [] and {"run", "status"} <= {c["key"] for c in data["columns"]}


def test_one_name_for_two_runs_is_refused(small: Frames) -> None:
    twice = Frames(
        pd.concat([small.runs, small.runs.head(1)]), small.layers, small.blocks, small.samples
    )
    with pytest.raises(ValueError, match="1 names stand for two runs"):
        build(twice)


def many(count: int = 1000, blocks: int = 30) -> Frames:
    """Synthetic runs of the size of real ones: 210 linears, 30 blocks, values all different."""
    generator = np.random.default_rng(0)
    methods = ("rtn", "gptq", "awq", "quantease", "qqa")
    entries = []
    for index in range(count):
        method, bits = methods[index % 5], (2, 3, 4)[index // 5 % 3]
        alpha = (0.0, 0.25, 0.5, 1.0, "auto")[index // 15 % 5]
        one = entry(f"model-{method}-w{bits}-a{alpha}-{index:08x}", method, bits, alpha, blocks=0)
        one.record.summary |= {"seed": index // 75, "model": f"m{index % 2}"}
        one.record.config["filler"] = {f"option_{k}": index % (k + 2) for k in range(60)}
        one.record.metrics |= {f"accuracy/task{k}": generator.random() for k in range(6)}
        one.record.metrics["perplexity/x"] = float(np.exp(generator.normal(4 - bits / 2, 0.3)))
        entries.append(one)
    table = frames(entries)
    names, linears = table.runs["run"].to_numpy(), blocks * len(ROLES)
    linear = [f"model.layers.{block}.{role}" for block in range(blocks) for role in ROLES]
    layers: dict[str, Any] = {
        "run": pd.Categorical.from_codes(np.repeat(np.arange(count), linears), names),
        "name": pd.Categorical(linear * count),
        "block": np.tile(np.repeat(np.arange(blocks), len(ROLES)), count),
        "role": pd.Categorical(list(ROLES) * blocks * count),
        "alpha": 0.5,
        "signal": 1.0,
    }
    for key in ("total_error", "local_error", "rounding_error"):
        layers[key] = generator.lognormal(-4, 1, count * linears)
    curves = {
        "run": pd.Categorical.from_codes(np.repeat(np.arange(count), blocks), names),
        "block": np.tile(np.arange(blocks), count),
        "relative_error": generator.lognormal(-5, 1, (count, blocks)).cumsum(axis=1).ravel(),
    }
    return Frames(table.runs, pd.DataFrame(layers), pd.DataFrame(curves), table.samples)


@functools.cache
def big_page() -> str:
    return build(many())


def test_a_thousand_runs_stay_small() -> None:
    assert len(big_page().encode()) < 15e6


def test_errors_keep_four_digits() -> None:
    generator = np.random.default_rng(0)
    values = generator.lognormal(0, 8, 20_000) * generator.choice([-1, 1], 20_000)
    special = np.array([0.0, math.inf, -math.inf, 1.0, 99995.0, 0.00099999])
    values = np.concatenate([values, special])
    literal = [float(f"{value:.4g}") for value in values]
    assert rounded(values).tolist() == literal
    assert np.isnan(rounded(np.array([math.nan]))[0])
