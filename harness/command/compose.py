"""Command lines become typed configurations, a sweep's as a single run's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from harness.command.composer import Composer, hydra_on
from harness.command.faults import configured, hydra_of
from harness.command.programs import alone, called, own_folder
from harness.command.protocols import Protocols
from harness.command.spread import check_launcher, elsewhere
from harness.command.words import first_line, several
from harness.settings.config import Config, ConfigError

MULTIRUN = ("-m", "--multirun")


@dataclass(frozen=True)
class Sweep:
    """What a command line stands for; a single run is a sweep of one job.

    Args:
        conf: the folder of configurations.
        fixed: the words that all jobs share, Hydra's own included.
        jobs: the words of each job.
        configs: the typed configuration of each job, in the same order.
        launcher: the option of Hydra's group ``hydra/launcher``.
        own: a second folder of configurations, the user's.
        elsewhere: other machines than this do the runs.
    """

    conf: Path
    fixed: list[str]
    jobs: list[list[str]]
    configs: list[Config]
    launcher: str = "basic"
    own: Path | None = None
    elsewhere: bool = False

    @property
    def distinct(self) -> list[Config]:
        """The configurations without those that are the same run as an earlier one."""
        return list({config.run_id: config for config in reversed(self.configs)}.values())[::-1]


def compose_jobs(conf: Path, arguments: Sequence[str]) -> Sweep:
    """Every job that ``arguments`` stand for; each knows the command that runs it alone.

    Raises:
        ConfigError: a job does not compose, or its configuration can't run; one line.
    """
    own, words = own_members(conf, arguments)
    with hydra_on(conf, own):
        return replace(compose_with(Composer(), conf, words, called(own)), own=own)


def own_members(conf: Path, arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The user's own folder of configurations, if the words name one, and the other words.

    Raises:
        ConfigError: there is none, or a file in it bears the name of one in ``conf``.
    """
    try:
        own, words = own_folder(arguments)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if own is not None:
        for path in own.rglob("*.yaml"):
            name = path.relative_to(own)
            if (conf / name).exists():
                raise ConfigError(f"{path}: there is a {name} already; rename this one")
    return own, words


def compose_with(
    composer: Composer, conf: Path, arguments: Sequence[str], before: str = ""
) -> Sweep:
    """The same while Hydra knows the folder, and with what ``composer`` has merged already."""
    words = [word for word in arguments if word not in MULTIRUN]
    if len(words) < len(arguments):
        fixed, jobs, launcher, away = swept(composer, words, conf)
    else:
        check_single(composer, words, conf)
        fixed, jobs, launcher, away = words, [words], "basic", False
    protocols = Protocols()
    runs = [
        (words, protocols.named(config))
        for job in jobs
        for words, config in repeated(composer, job, conf, before)
    ]
    return Sweep(
        conf, fixed, [job for job, _ in runs], [one for _, one in runs], launcher, None, away
    )


def repeated(
    composer: Composer, job: list[str], conf: Path, before: str
) -> Iterator[tuple[list[str], Config]]:
    """The words and the configuration of a job, or of each of the runs that ``noise.repeats`` makes of it.

    Seed 0 comes last, so that its record has the spread from its beginning. ``before`` is what stands
    before the words in a command.
    """
    config = configured(composer, job, conf, alone(before, job))
    repeats = config.noise.repeats if config.quantizes else 1
    if repeats > 1 and config.noise.seed:
        raise ConfigError(
            f"noise.seed={config.noise.seed}: noise.repeats={repeats} takes the seeds 0 to "
            f"{repeats - 1} itself; leave one of the two out"
        )
    for seed in range(1, repeats):
        words = [*job, f"noise.seed={seed}"]
        single = [word for word in words if not word.startswith("noise.repeats=")]
        yield words, configured(composer, words, conf, alone(before, single))
    yield job, config


def swept(
    composer: Composer, words: Sequence[str], conf: Path
) -> tuple[list[str], list[list[str]], str, bool]:
    """The words that all jobs share, the words of each, the launcher, and whether it goes elsewhere."""
    overrides = composer.parse(words)
    last = {one.key_or_group: one for one in overrides}
    fixed = []
    for one in overrides:
        word, later = str(one.input_line), last[one.key_or_group]
        if not one.is_sweep_override():
            fixed.append(word)
        elif later is not one:
            raise ConfigError(f"{word}: {later.input_line} comes later and replaces it")
        elif isinstance(one.value(), IntervalSweep):
            raise ConfigError(f"{word}: an interval has no steps; a range has, range(2,5)")
    hydra = hydra_of(composer, fixed, conf)
    launcher = hydra.runtime.choices["hydra/launcher"]
    check_launcher(launcher, hydra.launcher["_target_"], hydra.sweep.dir)
    params = {str(key): value for key, value in (hydra.sweeper.params or {}).items()}
    all_words = [*(f"{key}={one}" for key, one in params.items() if key not in last), *words]
    try:
        batches = BasicSweeper.split_arguments(composer.parse(all_words), max_batch_size=None)
    except HydraException as error:
        raise ConfigError(f"{' '.join(all_words)}: {first_line(error)}") from None
    jobs = [list(job) for batch in batches for job in batch]
    if not jobs:
        raise ConfigError(f"{' '.join(all_words)}: a sweep without values")
    return fixed, jobs, launcher, elsewhere(hydra.launcher["_target_"])


def check_single(composer: Composer, words: Sequence[str], conf: Path) -> None:
    """Refuses, without ``-m``, what only a sweep can do."""
    overrides = composer.parse(words)
    for one in overrides:
        if one.is_sweep_override():
            raise ConfigError(several(one))
    if not any(map(_may_sweep, overrides)):
        return
    hydra = hydra_of(composer, words, conf)
    if hydra.sweeper.params:
        raise ConfigError(f"{_grid(hydra)}: several values are a sweep, which needs -m")
    launcher = hydra.runtime.choices["hydra/launcher"]
    if launcher != "basic":
        raise ConfigError(f"hydra/launcher={launcher}: a launcher runs sweeps, which need -m")


def _may_sweep(override: Override) -> bool:
    """Whether a word can bring a sweep with it: one for Hydra itself, or a named experiment."""
    return override.is_hydra_override() or override.key_or_group == "experiment"


def _grid(hydra: DictConfig) -> str:
    """A sweep that a file or a word asks for."""
    grid = " ".join(f"{key}={value}" for key, value in hydra.sweeper.params.items())
    experiment = hydra.runtime.choices.get("experiment")
    return f"experiment={experiment} ({grid})" if experiment else f"hydra.sweeper.params ({grid})"
