"""Warnings of libraries get through in one line, but for those that are named with a reason."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import run
from runs import words
from safetensors.torch import load_file, save_file
from test_checkpoint import configure

from harness.command import notices
from harness.command.notices import DROPPED, LIBRARIES, listen


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is said."""
    lines: list[str] = []
    monkeypatch.setattr(notices, "LIBRARIES", (*LIBRARIES, "made_up_library"))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        listen(lines.append)
        yield lines


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_unknown_warning_gets_through_in_one_line_and_once(
    library: str, told: list[str]
) -> None:
    for _ in range(2):
        logging.getLogger(f"{library}.a.part").warning(
            "\x1b[1mBeware\x1b[0m of %s\nand more", "it"
        )
        logging.getLogger(f"{library}.a.part").info("on the way")
    assert told == [f"{library} warns: Beware of it …"]


def test_a_library_that_is_imported_later_prints_nothing_by_itself(
    told: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("made_up_library")  # as such a library does at its import
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.WARNING)
    logging.getLogger("made_up_library.part").warning("Beware")
    assert told == ["made_up_library warns: Beware"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("category", [UserWarning, FutureWarning, RuntimeWarning])
def test_a_warning_of_python_gets_through(category: type[Warning], told: list[str]) -> None:
    where = "/usr/lib/python3/site-packages/torch/nn/functional.py"
    warnings.warn_explicit("Beware of it\n", category, where, 3, registry={})
    assert told == ["torch warns: Beware of it"]


def test_what_is_dropped_is_dropped_by_name(told: list[str]) -> None:
    logger = logging.getLogger("transformers.modeling_utils")
    report = "\x1b[1mLlamaForCausalLM LOAD REPORT\x1b[0m from: there\nlm_head.weight | MISSING"
    logger.warning(report)
    assert told == []
    logging.getLogger("lm_eval.other").warning(report)
    assert len(told) == 1
    assert all(len(one.reason) > 20 for one in DROPPED)


def test_a_warning_of_a_run_is_told_in_the_run(tiny_folder: Path, tmp_path: Path) -> None:
    """The configuration says that head and embeddings are one; the file has two."""
    copy = Path(shutil.copytree(tiny_folder / "tiny", tmp_path / "tied"))
    configure(copy, tie_word_embeddings=True)
    arguments = [*words(tiny_folder, tmp_path / "results"), f"model.path={copy}", "method=none"]
    ended = run(arguments, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    (line,) = [line for line in ended.stdout.splitlines() if "warns" in line]
    assert line.startswith("transformers warns: The tied weights mapping and config")
    assert "we will NOT tie them" in line
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    ended = run([*arguments, "force=true"], tmp_path)
    assert ended.returncode == 0 and "warns" not in ended.stdout
