"""What docs/tutorial.md says to paste works: its commands in their order, its modules, its LaTeX."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import pytest
from runs import CONF, ROOT, words

from analysis import __main__ as analysis
from harness.command import cli, runs

pytestmark = pytest.mark.long

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(one) for one in re.findall(r"```bash\n(.*?)\n```", TEXT)]
MODULES = re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)


def test_the_tutorial_leads_from_the_command_to_the_figure(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = words(tiny_folder, Path("results"))

    def run(arguments: Sequence[str]) -> int:
        return cli.main(print, CONF, [*arguments, *tiny])

    programs: dict[tuple[str, ...], Callable[[Sequence[str]], int]] = {
        ("python", "run.py"): run,
        ("python", "-m", "harness.command.runs"): runs.main,
        ("python", "-m", "analysis"): analysis.main,
    }
    said = []
    for command in COMMANDS:
        (name,) = (one for one in programs if tuple(command[: len(one)]) == one)
        assert programs[name](command[len(name) :]) == 0, command
        said.append(capsys.readouterr().out)
    dry, sweep, listed, seeds, noise, made = said
    assert not re.search("✓", dry) and "10 jobs: 10 done, 0 skipped" in sweep
    assert listed.count("tiny-gptq-w3") == 5
    assert "8 jobs: 8 done" in seeds and "6 jobs: 4 done, 2 skipped" in noise
    assert made.startswith("written: paper/dashboard.html\n23 runs: ")
    for file in re.findall(r"`(paper/\w+/\w+\.\w+)`|\{(paper/\w+/\w+\.\w+)\}", TEXT):
        assert Path("".join(file)).stat().st_size > 0, file
    assert Path("paper/figures/alpha.txt").is_file()
    for name, text in MODULES:
        Path(name).write_text(text.replace("perplexity/wiki", "perplexity/text"), encoding="utf-8")
        with mpl.rc_context():
            runpy.run_path(name)
    assert Path("paper/figures/own.pdf").read_bytes().startswith(b"%PDF")
    assert len(Path("paper/runs.csv").read_text().splitlines()) == 24


def test_no_snippet_is_left_untried() -> None:
    (latex,) = re.findall(r"```latex\n(.*?)```", TEXT, re.DOTALL)
    assert re.findall(r"\\(begin|end)\{figure\}", latex) == ["begin", "end"]
    assert TEXT.count("```") == 2 * (len(COMMANDS) + len(MODULES) + 1)
