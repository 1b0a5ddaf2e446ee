"""Every wrong word of a command line is answered in one line that says what is right; nothing starts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import CONF, quiet_console

from harness.command import cli
from harness.command.compose import Sweep, compose_with
from harness.command.composer import Composer, hydra_on
from harness.command.words import keys_of, parsed, pasteable
from harness.records.record import Record
from harness.records.recorder import summary
from harness.settings.config import ConfigError

QUANTEASE = "method=quantease "
TYPOS = "no such option; "
WRONG = [
    # several values where one is wanted
    ("bits=3,4", r"bits=3,4: several values are a sweep, which needs -m: python run.py -m bits=3,4"),
    ("method=gptq,rtn", "method=gptq,rtn: several values are a sweep, which needs -m"),
    ("eval.tasks=[a],[a,b]", "several values are a sweep, which needs -m"),
    ("bits=range(2,5)", "several values are a sweep, which needs -m"),
    ("method=glob(*)", "several values are a sweep, which needs -m"),
    ("experiment=sweep_alpha", r"experiment=sweep_alpha \(qep.alpha=0,0.1.*\): .* needs -m"),
    ("hydra/launcher=joblib", "hydra/launcher=joblib: a launcher runs sweeps, which need -m"),
    ("method=[gptq,rtn]", "method is one of its options; -m method=a,b tries several"),
    # sweeps that are none
    ("-m bits=range(5,2)", r"bits=range\(5,2\): a sweep without values"),
    ("-m bits=interval(2,4)", "an interval has no steps"),
    ("-m bits=2,3 bits=4", "bits=2,3: bits=4 comes later and replaces it"),
    ("-m bits=2,3 method=gptq,rtnn", "method=rtnn: allowed are .*did you mean 'rtn'"),
    # keys that nobody reads
    ("+typo=3", f"typo: {TYPOS}"),
    ("++x=1", f"x: {TYPOS}"),
    ("+new.key=1", f"new: {TYPOS}"),
    ("+method@other=rtn", f"other: {TYPOS}"),
    ("+seeed=1", f"seeed: {TYPOS}did you mean 'seed'"),
    ("+model.foo=1", f"model.foo: {TYPOS}known are name, asset, dtype, streaming$"),
    ("+qep.typo=1", f"qep.typo: {TYPOS}known are alpha,"),
    ("+tracker._open=[1]", f"tracker._open: {TYPOS}known are mode, project, entity, group, timeout$"),
    (QUANTEASE + "+method.outliers.foo=1", f"method.outliers.foo: {TYPOS}known are fraction, structured$"),
    ("+eval.foo=1", f"eval.foo: {TYPOS}known are .*tasks, limit"),
    ("+eval.evaluators.zeroshot.foo=1", f"eval.evaluators.zeroshot.foo: {TYPOS}"),
    ("+eval.evaluators.perplexity.corpora.c.path=x", "corpora.c._target_ is needed"),
    ("+bits.foo=1", "bits={'foo': 1}: input should be a valid integer"),
    ("+hydra.foo=1", f"hydra.foo: {TYPOS}"),
    ("+bits=3", r"\+bits=3: there is one already"),
    ("+method=rtn", r"\+method=rtn: method is chosen already; method=rtn replaces it"),
    # keys that are needed
    *((f"~{key}", f"{key} is needed: set {key}=...") for key in ("bits", "qep", "model", "eval")),
    *((f"~{key}", f"{key} is needed: set {key}=...") for key in ("tracker", "stop", "model.name")),
    ("~model._target_", "model._target_ is needed"),
    ("~nothing", f"nothing: {TYPOS}"),
    ("~qep.nothing", f"qep.nothing: {TYPOS}known are alpha,"),
    ("~bits=4", "The value of 'bits' is 3 and not 4"),
    # suggestions that exist where the word was going
    ("method.block_size=0", f"{TYPOS}known are damping, act_order, static_groups, fresh_groups$"),
    ("method.seed=1", "method.seed: not an option of the chosen method, but of qqa$"),
    ("method=rtn method.blocksize=1", f"{TYPOS}method has none$"),
    ("method.outliers.fractoin=1", "method.outliers: not an option of the chosen method, but of quantease$"),
    ("method.group_size=32", f"{TYPOS}did you mean 'group_size'"),
    ("groupsize=32", f"{TYPOS}did you mean 'group_size'"),
    ("alpha=0.5", f"{TYPOS}did you mean 'qep.alpha'"),
    ("windows=3", f"{TYPOS}did you mean 'calibration.windows' or 'eval.windows'"),
    ("mehod=gptq", f"{TYPOS}did you mean 'method'"),
    ("mehod.damping=1", f"{TYPOS}did you mean 'method.damping'"),
    ("model.path=x", r"model.path: not an option of the chosen model, but of bloom_176b, .* and \d+ more$"),
    ("calibration.path=x", "not an option of the chosen calibration, but of c4, .*text, tokens"),
    ("eval.evaluators.zershot.limit=2", "did you mean 'eval.evaluators.zeroshot.limit'"),
    ("qep={alhpa: 0.3}", "qep.alhpa: no such option; did you mean 'qep.alpha'"),
    ("eval/foo=1", "eval/foo: no such group; known are calibration, device_profile, eval"),
    ("hydra.verbos=true", "hydra.verbos: no such option; did you mean 'hydra.verbose'"),
    ("-m hydra/launcher=joblib hydra.launcher.njobs=3", "did you mean 'hydra.launcher.n_jobs'"),
    ("hydra/launcher=job", "hydra/launcher=job: allowed are basic, joblib, .*did you mean 'joblib'"),
    ("hydra.sweeper.max_batch_size=x", "hydra.sweeper.max_batch_size=x: Value 'x'"),
    ("experiment=sweep_alhpa", "experiment=sweep_alhpa: allowed are .*did you mean 'sweep_alpha'"),
    # values that are none
    ("model=null", "model=null: allowed are"),
    ("method=3", "method=3: allowed are awq"),
    ("method=", "method=: allowed are awq"),
    ("bits=", "bits='': input should be a valid integer"),
    ("bits=null", "^bits is needed: set bits=...$"),
    ("bits=true", "bits=True: want a number"),
    ("qep.alpha=true", "qep.alpha=True: want a number"),
    ("qep=3", "qep=3: want options, alpha, damping"),
    ("qep.skip={a: b}", "qep.skip is a list, not a mapping"),
    ("quantize.exclude=*.o_proj", r"want a list, quantize.exclude=\[\*.o_proj\]$"),
    ("qep.dampings=[1,x]", r"qep.dampings\[1\]='x': input should be a valid number"),
    ("+qep.overrides={a: x}", "qep.overrides.a='x': input should be a valid number.* or .*'auto'"),
    ("eval.tasks=wiki_term", r"^eval.tasks='wiki_term': want a list, eval.tasks=\[wiki_term\]$"),
    ("eval.limit=x", "^eval.limit='x': input should be a valid integer"),
    ("eval.windows=x", "^eval.windows='x': input should be a valid integer, [^;]*$"),
    ("eval.limit=1", r"^eval.limit=1 \(at least 2\)$"),
    ("eval.length=1", r"^eval.length=1 \(at least 2\)$"),
    ("calibration.windows=0", r"^calibration.windows=0 \(at least 1\)$"),
    ("eval.bos=x", "^eval.bos='x': input should be 'auto', 'every', 'first' or 'none'$"),
    ("model=hf model.path=", "^model.path is empty: a hub name"),
    ("eval.evaluators=null", "eval.evaluators=None: want a mapping of evaluators"),
    ("eval.evaluators.perplexity=null", "eval.evaluators.perplexity=None: want options with the _target_"),
    ("eval.evaluators.perplexity.corpora.wiki=3", "corpora.wiki=3: want options with the _target_"),
    ("model._target_=os.path", "model._target_='os.path': not a dataclass"),
    ("+eval.evaluators.r={_target_: harness.methods.rtn.RTN}", "evaluators.r: RTN has no evaluate"),
    (QUANTEASE + "method.outliers=3", "method.outliers=3: want options, fraction, structured"),
    (QUANTEASE + "method.outliers.fraction=x", "method.outliers.fraction='x': input should be"),
    (QUANTEASE + "method.outliers.fraction=2", "method.outliers.fraction=2.0: allowed are"),
    ("method.damping=inf", "method.damping=inf: allowed are finite numbers from 0 up"),
    ("set=1e3", "set=1000.0: want text; quotes make it one"),
    ("seed=-1", "seed=-1: allowed are whole numbers from 0"),
    ("bits=${nothing}", "bits: Interpolation key 'nothing' not found"),
    ("bits=${oc.env:NO_SUCH_THING}", "bits: .*'NO_SUCH_THING' not found"),
    ("bits=${bits}", "bits: Recursive interpolation"),
    ("model=hf", "^model.path is needed: set model.path=...$"),
    ("eval=text", "^eval.path is needed: set eval.path=...$"),
    # words that are none
    ("bits", "'bits': want key=value"),
    ("=3", "'=3': want key=value"),
    ("--bits=3", "'--bits=3': options are key=value, without dashes"),
    ("a..b=3", "'a..b=3': want key=value"),
    ("bits=2,", "a value is missing after the last comma"),
    ("eval.tasks=[a", "a bracket must be closed"),
    ("bits=${seed", "a bracket must be closed"),
    ("set='a", "a quote must be closed"),
    ('+qep.overrides={"a": 1}', "a mapping {a: 1} without quotes around a"),
    ("set=a=b", "as text it is \"set='a=b'\""),
    ("model.path=/é", "as text it is \"model.path='/é'\""),
]  # fmt: skip


def words(line: str) -> list[str]:
    """The words of a line, one a key; a mapping's spaces are its own."""
    return re.split(r" (?=[^ ]*=)", line) if "{" not in line else [line]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


@pytest.fixture
def composing(composer: Composer) -> Iterator[Callable[[str], Sweep]]:
    """Composes a line, with what the lines before had merged."""
    with hydra_on(CONF):
        yield lambda line: compose_with(composer, CONF, words(line))


@pytest.mark.parametrize(("line", "said"), WRONG, ids=lambda one: one)
def test_a_wrong_word_is_one_line(line: str, said: str, composing: Callable[[str], Sweep]) -> None:
    with pytest.raises(ConfigError) as caught:
        composing(line)
    assert "\n" not in str(caught.value) and re.search(said, str(caught.value)), caught.value


@pytest.mark.parametrize("line", ["bits=2,3", "+typo=3", "-m bits=", "bits"])
def test_nothing_starts(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(print, CONF, words(line)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"error: [^\n]+\n", printed.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "+qep.overrides={*.o_proj: 1.0}",
        "+eval.evaluators.mine={_target_: harness.evaluate.perplexity.Perplexity, corpora: {}}",
        "+eval.evaluators.perplexity.corpora.c={_target_: harness.inputs.corpora.LocalText, path: x}",
        "+calibration@eval.evaluators.perplexity.corpora.c4=c4",
        "+calibration.name=mine",
        "++bits=3",
        "~eval.evaluators.zeroshot",
        "~experiment",
        "set=2024",
        "experiment=qep_paper",
        "hydra.verbose=true",
        "bits=2 bits=3",
    ],
)  # fmt: skip
def test_what_makes_sense_composes(line: str, composing: Callable[[str], Sweep]) -> None:
    assert len(composing(line).configs) == 1


def test_lists_are_values_of_a_sweep(composing: Callable[[str], Sweep]) -> None:
    sweep = composing("-m eval.tasks=[wiki_term],[wiki_term,wiki_title]")
    tasks = [config.evaluators["zeroshot"].tasks for config in sweep.configs]
    assert tasks == [["wiki_term"], ["wiki_term", "wiki_title"]]
    assert len(composing("-m method=glob(gpt*)").configs) == 2


@pytest.mark.parametrize("chosen", ["method=gptq", "method=rtn", "eval=none"])
def test_every_suggestion_is_a_key_of_the_chosen_files(
    chosen: str, composing: Callable[[str], Sweep]
) -> None:
    known = set(keys_of(Composer().merged([chosen])))
    group = chosen.partition("=")[0]
    for key in ("sead", "foo", "blocks", "alpah", "group"):
        for typed in (f"{group}.{key}", f"{key}x"):
            with pytest.raises(ConfigError) as caught:
                composing(f"{chosen} {typed}=1")
            for name in re.findall("'([^']+)'", str(caught.value)):
                assert name in known, caught.value


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("aé1 /.=,:;()[]{}'\"$~!@#%&*+-\\|<>"), min_size=1, max_size=12))
def test_advice_can_be_pasted(text: str) -> None:
    (word,) = shlex.split(pasteable("set", text))
    assert parsed(word).value() == text


def test_tables_show_lists_with_their_brackets(composing: Callable[[str], Sweep]) -> None:
    console, text = quiet_console()
    patterns = "[*.o_proj],[*.o_proj,*.up_proj]"
    records = [
        Record(one.run_id, "done", config=one.identity(), summary=summary(one))
        for one in composing(f"-m quantize.exclude={patterns}").configs
    ]
    console.summary(records, {}, "here")
    for shown in ("[*.o_proj] ", "[*.o_proj,*.up_proj] "):
        assert f"left alone {shown}" in text.getvalue()
