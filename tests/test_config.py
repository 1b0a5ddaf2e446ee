"""Composition, types, identity and the one-line answers to bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.command import cli
from harness.command.cli import checks, plan_jobs
from harness.command.console import summary
from harness.inputs import assets
from harness.inputs.corpora import LocalText
from harness.inputs.heldout import HeldOut
from harness.inputs.models import HubModel
from harness.settings.build import build_config
from harness.settings.config import Config, ConfigError

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"


def jobs(*words: str) -> list[Config]:
    return plan_jobs(CONF, list(words))


def one(*words: str) -> Config:
    return jobs(*words)[0]


def test_the_mission_s_sweep_is_eighteen_jobs() -> None:
    configs = jobs("-m", "method=gptq,rtn", "bits=2,3,4", "qep.alpha=0,0.5,1")
    assert len({config.run_id for config in configs}) == 18
    first = configs[0]
    assert (first.method_name, first.axes.said.bits, first.qep.alpha) == ("gptq", 2, 0.0)


@pytest.mark.parametrize(
    ("same", "other"),
    [
        ("qep.alpha=0", "qep.alpha=0.0"),
        ("qep.alpha=0.5", "tracker=none"),
        ("qep.alpha=0.5", "set=elsewhere"),
        ("qep.alpha=0.5", "threads=1"),
        ("method=none", "method=none bits=4"),
        ("method=none", "method=none calibration.windows=4"),
        ("qep.alpha=0", "qep.alpha=0 qep.damping=0.1"),
    ],
)
def test_equal_work_has_an_equal_name(same: str, other: str) -> None:
    assert one(*same.split()).run_id == one(*other.split()).run_id


@pytest.mark.parametrize(
    "change",
    [
        "bits=4",
        "method=rtn",
        "method.damping=0.1",
        "seed=1",
        "qep.damping=0.1",
        "group_size=32",
        "calibration.windows=8",
        "quantize.blocks=0:10",
        "method=none",
    ],
)
def test_other_work_has_another_name(change: str) -> None:
    assert one(change).run_id != one().run_id


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_every_method_composes(option: str) -> None:
    assert one(f"method={option}").method_name == option


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_every_model_composes(option: str) -> None:
    assert one(
        f"model={option}", "model.path=somewhere" if option == "hf" else "seed=0"
    ).model.name


@pytest.mark.parametrize("group", ["calibration", "eval", "tracker"])
def test_every_option_of_a_group_composes(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        words = [f"{group}={path.stem}"]
        if "???" in path.read_text():
            words.append(f"{group}.path=somewhere")
        assert one(*words)


@pytest.mark.parametrize(
    "path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_experiment_composes_as_its_first_comment_says(path: Path) -> None:
    command = next(line for line in path.read_text().splitlines() if "python run.py" in line)
    words = command.split("python run.py", 1)[1].split()
    assert f"experiment={path.stem}" in words
    assert jobs(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("method=gptqq", "method=gptqq: allowed are .*did you mean 'gptq'"),
        ("model=smollm", "model=smollm: allowed are .*did you mean 'smollm2_135m'"),
        ("bits=1", "bits=1: allowed are 2 to 8"),
        ("bits=16", "bits=16: allowed are 2 to 8"),
        ("bits=three", "bits='three': "),
        ("qep.alpha=1.5", "qep.alpha=1.5: allowed are 'auto' and numbers from 0 to 1"),
        ("qep.alpha=-0.1", "qep.alpha=-0.1: allowed"),
        ("qep.alpha=auto", "needs held-out windows"),
        ("qep.alhpa=0", "qep.alhpa: no such option; did you mean 'qep.alpha'"),
        (
            "qep.overrides={*.o_proj:1}",
            r"added with a plus: \+qep.overrides=",
        ),
        (
            "method=awq method.damping=1",
            "method.damping: not an option of the chosen method, but of gptaq, gptq, qronos, quantease, quip",
        ),
        (
            "method=quantease method.outliers.fractoin=0.1",
            "method.outliers.fractoin: no such option; did you mean 'method.outliers.fraction'",
        ),
        ("method.dampnig=1", "method.dampnig: no such option; did you mean 'method.damping'"),
        ("method.damping=-1", "method.damping=-1"),
        ("group_size=0", "group_size=0: must be positive"),
        ("threads=0", "threads=0: must be at least 1"),
        ("noise.repeats=1000000", "noise.repeats=1000000: at most 1000"),
        ("calibration=tokens", "calibration.path"),
        ("model=hf", "model.path"),
    ],
)
def test_bad_input_is_one_line_with_value_and_hint(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        one(*words.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "wiki, 16 windows of 256 tokens"),
        ("calibration.holdout=4", "wiki, 16 windows of 256 tokens, 4 held out"),
        ("calibration=tokens calibration.path=a.npz", "tokens, a.npz"),
        ("calibration=c4", "c4, allenai/c4, 128 windows of 2048 tokens"),
    ],
)
def test_the_header_says_which_tokens(words: str, said: str) -> None:
    assert summary(one(*words.split()).calibration) == said


def test_all_bad_fields_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        one("qep.alpha=2", "seed=x", "method.damping=-1")
    for name in ("qep.alpha=2", "seed='x'", "method.damping=-1"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("device=cuda:7", "device='cuda:7': this machine has 0 cuda devices"),
        ("device=tpux", "device='tpux': no such device"),
        ("threads=100000", "threads=100000: at most "),
        ("device=meta", "device='meta': this machine has 0 meta devices"),
        ("results=/proc/nowhere", "results='/proc/nowhere'"),
        ("model=hf model.path=./nowhere", "no such directory"),
        ("calibration=text calibration.path=/nowhere.txt", "nowhere.txt"),
        ("calibration=tokens calibration.path=/nowhere.npz", "nowhere.npz"),
    ],
)
def test_the_machine_and_the_files_are_checked_before_the_model_loads(
    words: str, said: str, tmp_path: Path
) -> None:
    given = words.split()
    if not any(word.startswith("results=") for word in given):
        given.append(f"results={tmp_path}")
    if not any(word.startswith("calibration") for word in given):
        text = tmp_path / "text.txt"
        text.write_text("words")
        given += ["calibration=text", f"calibration.path={text}"]
    first = next(checks([one(*given, "eval=none")]))  # what comes after presupposes it
    assert said in first and "\n" not in first


@pytest.mark.parametrize(
    "words",
    [
        "model=hf model.path=LONG",
        "model=hf model.path=/tmp/LONG",
        "calibration=text calibration.path=LONG.txt",
        "eval=text eval.path=LONG.jsonl",
        "eval.tasks=[LONG.jsonl]",
        "eval=tasks eval.include=LONG",
        "results=LONG",
        "set=LONG",
        "model.name=LONG",
    ],
)
def test_a_name_of_300_characters_is_refused_in_one_line(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assets, "fetch", lambda asset: tmp_path)
    assert cli.main(print, CONF, words.replace("LONG", "x" * 300).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "too long" in error or "allowed are up to" in error or "not writable" in error


def test_eval_local_names_all_missing_files_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assets, "fetch", lambda asset: tmp_path)
    (tmp_path / "text.txt").write_text("words")
    words = ("calibration=text", "calibration.path=text.txt", "eval=local")
    first = next(checks([one(*words)]))
    for name in ("wikitext2_test.txt", "arc_easy.jsonl", "piqa.jsonl"):
        assert f"data/{name}: no such file" in first


def test_only_what_could_be_meant_is_suggested(tmp_path: Path) -> None:
    for name in ("opt", "text"):
        (tmp_path / name).mkdir()
    for path, said in ((f"{tmp_path}/op", "op'"), (f"{tmp_path}/texts", "texts'")):
        with pytest.raises(ValueError, match=f"{said}: no such directory$"):
            HubModel(path).check()
        with pytest.raises(ValueError, match="no such file$"):
            LocalText(path).check()
    (tmp_path / "opt" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="did you mean '.*/opt'"):
        HubModel(f"{tmp_path}/op").check()


def test_an_unknown_target_is_named() -> None:
    plain = dict(one().plain)
    plain["method"] = {"_target_": "harness.methods.nothing.Nothing"}
    with pytest.raises(ConfigError, match=r"harness\.methods\.nothing\.Nothing"):
        build_config(plain)


def test_help_is_quick_to_import() -> None:
    """``--help`` must not wait for torch."""
    code = (
        "import sys, runpy; sys.argv = ['run.py', '--help']\n"
        "try: runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "QEP" not in done.stderr and "bits=3" in done.stdout


def test_held_out_windows_are_those_of_the_run_s_own_calibration() -> None:
    words = ["eval=heldout", "calibration.holdout=4", "calibration.windows=3", "seed=2"]
    config = plan_jobs(CONF, words)[0]
    corpus = config.evaluators["perplexity"].corpora["heldout"]
    assert corpus == HeldOut(config.calibration, 2)
