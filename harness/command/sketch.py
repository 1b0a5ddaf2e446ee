"""A dry run for a card that is not there: ``dry_run=true device=cuda device_profile=a100``.

It needs no input, no cache and no network: of a model its ``config.json``, of calibration sets how many
windows they say and of which length. Nothing of an evaluation is known then but the memory of its logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from rich.table import Table
from rich.text import Text

from harness.command.checks import planned, skeleton
from harness.command.console import Console
from harness.command.on_device import COLUMNS, Job, cells
from harness.inputs.corpora import Tokens
from harness.inputs.fit import check_fit
from harness.planning import check_axes
from harness.settings.config import Config, ConfigError


def sketch_problems(configs: Sequence[Config]) -> Iterator[str]:
    """What is wrong with runs that are estimated without their inputs."""
    if any(config.device_profile is None for config in configs):
        yield "device_profile=null: in a sweep either all runs are estimated for a card, or none"
        return
    for config in configs:
        try:
            model = skeleton(config)
            check_axes(config, model, planned(config))
            check_fit(declared(config), model)
        except ValueError as error:
            yield str(error)


def declared(config: Config) -> dict[str, Tokens]:
    """Windows as many and as long as the calibration sets of a run say, of zeros.

    Raises:
        ConfigError: one says only that it takes all there are; one line.
    """
    found = {}
    for name, corpus in config.calibrations.items():
        said = {key: getattr(corpus, key, None) for key in ("windows", "length")}
        if missing := [key for key, value in said.items() if value is None]:
            raise ConfigError(
                f"{name}.{missing[0]}=null: all there are, which is not looked at with device_profile; "
                "say a number"
            )
        windows = torch.zeros(said["windows"], said["length"], dtype=torch.int64)  # type: ignore[arg-type]
        heldout = windows.new_zeros(getattr(corpus, "holdout", 0), windows.shape[1])
        found[name] = Tokens(windows, heldout, name)
    return found


def job(config: Config) -> Job:
    """What shapes tell of a run."""
    model = skeleton(config)
    tokens, *others = declared(config).values()
    own = others[0].ids if others else tokens.ids[:0]
    return Job(config, model, planned(config), (tokens.ids, tokens.heldout, own), model.dtype)


def dry_run(configs: Sequence[Config], console: Console) -> None:
    """Says of every run what it takes of its card, and how it fits."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title in ("run", "card", *COLUMNS):
        right = title.startswith("GB") or title == "time"
        table.add_column(title, justify="right" if right else "left")
    for config in console.track(configs, "counting"):
        card, streamed = config.device_profile, getattr(config.model, "streaming", False)
        assert card is not None
        said = cells(list(job(config).ways(card)), streamed)
        table.add_row(Text(config.slug), card.name, *said)  # brackets are no markup
    console.out.print(table)
    console.say(
        "Nothing was started and no input was looked at. Memory is the most that tensors of the card hold "
        "at once, by calibration.hold; time is that of quantising at the card's published speeds, a bound "
        "from below (docs/scale.md)."
    )
