"""Jobs composed from files that are merged once are the jobs that Hydra composes."""

from __future__ import annotations

import shlex
import time

import pytest
from hydra import compose
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from runs import CONF

from harness.command.compose import Composer, compose_jobs, hydra_on

pytestmark = pytest.mark.long  # whole runs, or every composition

GROUPS = [
    *(f"method={name}" for name in ("gptq", "rtn", "quantease", "qqa")),
    *(f"calibration={name}" for name in ("wiki", "c4", "wikitext2")),
    *("eval=none", "eval=default", "model=opt_125m", "tracker=none", "~tracker"),
    *("experiment=qep_paper", "experiment=null", "+method@other=rtn", "hydra/launcher=basic"),
]
VALUES = [
    *("bits=2", "bits=4", "group_size=32", "group_size=null", "seed=3", "set=a"),
    *("qep.alpha=0", "qep.alpha=0.5", "qep.alpha=auto", "qep={alpha: 1}", "qep.skip=[a,b]"),
    *("+qep.overrides={*.o_proj: 1.0}", "++qep.damping=2", "~qep.skip", "+new.key=[1,{a: b}]"),
    *("model.name=x", "model={name: y}", "method.damping=0.1", "++method.new=${bits}"),
    *(
        "eval.windows=3",
        "eval.tasks=[wiki_term]",
        "calibration.windows=${seed}",
        "hydra.verbose=true",
    ),
    *("bits='a b'", "results=${oc.env:HOME}", "nothing=1", "qep.nothing=1", "bits=${nothing}"),
]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(GROUPS + VALUES), max_size=6))
def test_composed_as_hydra_does(words: list[str]) -> None:
    with hydra_on(CONF):
        own = outcome(lambda: Composer()(words))
        tasks = [word for word in words if not word.lstrip("+~").startswith("hydra")]
        assert own == outcome(lambda: resolved(tasks))


def test_one_composer_gives_every_job_of_a_sweep_what_hydra_does() -> None:
    arguments = ["-m", "method=gptq,quantease", "bits=2,3", "qep.alpha=0,0.5", "seed=1"]
    sweep = compose_jobs(CONF, arguments)
    assert len(sweep.jobs) == 8
    with hydra_on(CONF):
        assert [config.plain for config in sweep.configs] == [resolved(job) for job in sweep.jobs]


def resolved(words: list[str]) -> object:
    return OmegaConf.to_container(compose("config", words), resolve=True, throw_on_missing=True)


def outcome(composing) -> tuple[str, object]:  # type: ignore[no-untyped-def]
    """What comes out, or which kind of error."""
    try:
        return "composed", composing()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return "refused", type(error)


def test_a_named_grid_is_a_sweep_and_gives_way_to_the_command_line() -> None:
    sweep = compose_jobs(CONF, ["-m", "experiment=sweep_example"])
    assert len(sweep.distinct) == 18
    assert sweep.launcher == "basic"
    sweep = compose_jobs(CONF, ["-m", "experiment=sweep_example", "bits=3"])
    assert {one.axes.said.bits for one in sweep.configs} == {3} and len(sweep.configs) == 6


def test_jobs_that_are_the_same_run_are_one() -> None:
    sweep = compose_jobs(CONF, ["-m", "method=none,rtn", "bits=2,3"])
    assert [config.method_name for config in sweep.configs] == ["none", "none", "rtn", "rtn"]
    assert [config.method_name for config in sweep.distinct] == ["none", "rtn", "rtn"]


def test_a_job_more_costs_a_fraction_of_composing_it_alone() -> None:
    def seconds(alphas: int) -> float:
        words = ["-m", "qep.alpha=" + ",".join(str(i / alphas) for i in range(alphas))]
        start = time.process_time()
        assert len(compose_jobs(CONF, words).configs) == alphas
        return time.process_time() - start

    seconds(2)
    few, many = (min(seconds(count) for _ in range(2)) for count in (2, 22))
    assert (many - few) / 20 < 0.03, "Hydra alone takes 0.15 s or more"


@pytest.mark.parametrize("word", ["-m", "--multirun"])
def test_both_names_of_a_sweep(word: str) -> None:
    assert len(compose_jobs(CONF, ["bits=2,3", word]).configs) == 2


def test_every_job_knows_the_command_that_runs_it_alone() -> None:
    for words in (
        ["-m", "method=rtn,gptq", "bits=2,3", "qep.skip=['*.a b']"],
        ["-m", "experiment=sweep_alpha", "qep.alpha=0,0.3"],
        ["noise.repeats=3", "method=rtn"],
        ["method=rtn", "qep.alpha=0.25"],
    ):
        sweep = compose_jobs(CONF, words)
        for config in sweep.configs:
            alone = shlex.split(config.command.removeprefix("python run.py "))
            again = compose_jobs(CONF, alone).configs
            assert again[-1].run_id == config.run_id
            assert len(again) == 1 or config.noise.seed == 0
