"""Triton's kernels without a card: interpreted, compiled and chosen. On one: equal to their twins there."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import ROOT

from harness.formats.int import Int
from harness.formats.nf4 import NF4
from harness.numerics import kernels, shrink, twins
from harness.numerics.gpu import choice

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is for Linux on x86"
)
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CARD = torch.device("cuda:0")
CAPABILITIES = (80, 90, 100)


# In the interpreter


def interpreted(marked: str) -> None:
    """The tests of tests/interpreted.py."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-m", marked,
         "-W", "ignore::RuntimeWarning", "tests/interpreted.py"],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout, done.stdout


@needs_triton
@pytest.mark.long
def test_kernels_equal_their_twins_in_every_bit() -> None:
    interpreted("not long")


@needs_triton
@pytest.mark.long
def test_kernels_equal_their_twins_in_every_bit_at_full_size() -> None:
    interpreted("long")


# Compiled


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """tests/compiled.py, where nothing is compiled yet and the assembler's report can be read."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is for Linux on x86")
    import compiled
    from triton import knobs

    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(knobs.nvidia, "dump_ptxas_log", True)
    return compiled


def exact(ptx: str) -> bool:
    """Whether every product, sum and quotient is rounded once, and small numbers stay what they are."""
    return not re.search(r"\bfma\.|\.ftz|\.approx|div\.full", ptx)


@pytest.mark.parametrize("name", ["GPTQ", "GPTAQ, table", "QuantEase, table", "range search"])
def test_blocks_of_128_columns_stay_in_registers(name: str, compiled) -> None:
    found = compiled.compiled(name, 90)
    assert found.spilled == 0
    assert found.registers <= 128
    assert exact(found.ptx) and "div.rn.f32" in found.ptx


def test_fused_operations_would_be_noticed(compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiled.launch.OPTIONS, "enable_fp_fusion", True)
    assert not exact(compiled.compiled("GPTQ", 90).ptx)


def test_spills_would_be_noticed(compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiled.launch.OPTIONS, "maxnreg", 32)
    assert compiled.compiled("GPTQ", 90).spilled > 0


@pytest.mark.long
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 16), (37, 3), (48, 1), (33, 127)])
def test_every_shape_compiles(rows: int, columns: int, compiled) -> None:
    """Triton makes a kernel of its own where a number is 1, or a multiple of 16."""
    for name in compiled.CALLS:
        assert compiled.compiled(name, 90, rows=rows, columns=columns).spilled == 0, name


@pytest.mark.long
@pytest.mark.parametrize("real", [torch.float32, torch.float64], ids=str)
def test_every_kernel_takes_the_registers_that_the_docs_say(real, compiled) -> None:
    rows = []
    for name in compiled.CALLS:
        if real is torch.float64 and "search" in name:
            continue  # has no kernel
        found = [compiled.compiled(name, capability, real) for capability in CAPABILITIES]
        assert all(one.spilled == 0 and exact(one.ptx) for one in found), name
        rows.append(f"| {name} | {str(real)[6:]} | {' | '.join(one.figures for one in found)} |")
    documented, version = (ROOT / "docs" / "gpu.md").read_text(), choice.version()
    if f"triton {version}" not in documented:
        pytest.skip(f"the registers in docs/gpu.md are of another triton than {version}")
    assert "\n".join(rows) in documented, "\n".join(rows)


# The choice


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch):
    """As on a card of capability 9.0, with triton; the choice is made anew before and after."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(choice, "version", lambda: "3.7.1")
    monkeypatch.setattr(choice, "missing_tools", lambda: "")
    choice.loops.cache_clear()
    yield monkeypatch
    choice.loops.cache_clear()


@needs_triton
def test_a_card_gets_the_kernels(chosen, caplog: pytest.LogCaptureFixture) -> None:
    from harness.numerics.gpu import launch

    assert choice.loops(CARD) is launch
    assert choice.described(CARD) == "triton 3.7.1"
    assert not caplog.records


@pytest.mark.parametrize(
    ("where", "what", "value", "reason"),
    [
        (torch.version, "cuda", None, "built for CUDA"),
        (choice, "version", lambda: None, "triton is not installed (pip install 'qep-bench[triton]')"),
        (choice, "version", lambda: "3.6.0", "triton 3.6.0 is older than 3.7"),
        (torch.cuda, "get_device_capability", lambda device: (7, 5), "capability 7.5 is below 8.0"),
        (choice, "missing_tools", lambda: "there is no C compiler", "there is no C compiler"),
    ],
    ids=["torch", "triton", "old", "card", "tools"],
)  # fmt: skip
def test_without_kernels_the_twins_run_and_that_is_said_once(
    where, what, value, reason, chosen, caplog: pytest.LogCaptureFixture
) -> None:
    chosen.setattr(where, what, value)
    with caplog.at_level(logging.WARNING):
        assert choice.loops(CARD) is twins and choice.loops(CARD) is twins
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("cuda:0: column loops in plain torch") and reason in said
    assert "\n" not in said
    assert choice.described(CARD) == "plain torch"


def test_tools_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(choice.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in choice.missing_tools()
    (tmp_path / "Python.h").touch()
    assert choice.missing_tools() == ""
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "C compiler" in choice.missing_tools()


def test_other_devices_have_the_twins(chosen) -> None:
    assert choice.loops(torch.device("mps")) is twins


def test_tensors_that_are_on_no_cpu_take_the_chosen_loops(chosen) -> None:
    """The device of the first tensor decides, in all three."""
    calls = []

    class Chosen:
        def __getattr__(self, name):
            return lambda *given: calls.append((name, len(given)))

    weight = torch.empty(8, 4, device="meta")
    book = Int(3).codebook
    for module in (kernels, shrink):
        chosen.setattr(module, "loops", lambda device: Chosen())
    kernels.gptq_block(weight, weight, weight, weight, weight, book)
    kernels.quantease_block(weight, weight, weight, weight, weight, weight, book, False)
    shrink.least_error(weight, weight, weight, book, 2.4)
    assert calls == [("gptq_block", 7), ("quantease_block", 8), ("least_error", 5)]


# On a card


@needs_triton
@needs_card
@pytest.mark.parametrize("book", [Int(3).codebook, NF4().codebook], ids=["int", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_on_a_card_kernels_equal_their_twins_in_every_bit(book, dtype) -> None:
    launch = choice.loops(CARD)
    draw = torch.Generator(CARD).manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw, device=CARD).to(dtype)

    weight, factor, carry = normal(128, 1000), 0.1 * normal(128, 128).triu(1), normal(128, 128)
    factor.diagonal().copy_(0.5 + normal(128).abs())
    hessian, carry = factor.T @ factor, 0.05 * carry.triu(1)
    scale = 0.2 + normal(4, 1000).abs()
    grid = (scale, torch.zeros_like(scale), torch.arange(128, device=CARD) // 32, book)
    found = []
    for module in (launch, twins):
        work, current = weight.clone(), weight.clone()
        rows = weight.T.float()
        found.append([
            *module.gptq_block(work, factor, *grid, carry), work,
            *module.quantease_block(current, 0.1 * weight, hessian, *grid, False), current,
            module.least_error(rows, scale.float(), grid[1].float(), book, 2.4),
        ])  # fmt: skip
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
