"""A plain dictionary, as the command line makes it, becomes the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from harness.numerics.propagation import Propagation
from harness.records.cache import CacheOptions
from harness.settings.axes import AXES
from harness.settings.config import Config, ConfigError, Selection
from harness.settings.construct import coerce, hints_of, make, plugin, unknown
from harness.settings.experts import Experts
from harness.settings.noise import Noise
from harness.settings.own_sets import hold_of, own_set, without_own_sets
from harness.settings.read_axes import read_axes
from harness.settings.stopping import Checkpoint, Stop

# Where the values of a configuration go: into objects by _target_ (with what these can do), into
# sections, or under their own names, but for those that are made of others.
PLUGINS = {"model": "load", "method": "quantize", "calibration": "tokens", "tracker": "start"}
SECTIONS: dict[str, type] = {
    "qep": Propagation,
    "quantize": Selection,
    "noise": Noise,
    "stop": Stop,
    "checkpoint": Checkpoint,
    "experts": Experts,
    "cache": CacheOptions,
}
DERIVED = ("axes", "evaluators", "own_calibration", "hold", "protocol", "command", "plain")


def build_config(plain: Mapping[str, Any], command: str = "") -> Config:
    """The configuration that a resolved plain dictionary describes.

    Raises:
        ConfigError: one line that names every bad field, its value and what is allowed.
    """
    problems: list[str] = []
    hints = hints_of(Config)
    simple = [f.name for f in fields(Config) if f.name not in (*PLUGINS, *SECTIONS, *DERIVED)]
    known = [*PLUGINS, "eval", *AXES, "overrides", "budget", *SECTIONS, *simple]
    problems += [unknown(str(key), known) for key in plain if key not in known]
    needed = (*PLUGINS, "eval", *SECTIONS)
    problems += [f"{key} is needed: set {key}=..." for key in needed if key not in plain]
    parts: dict[str, Any] = {"axes": read_axes(plain, problems)}
    bare = without_own_sets(plain, plain.get("calibration"))
    parts |= {
        key: plugin(bare[key], key, problems, does)
        for key, does in PLUGINS.items()
        if key in plain
    }
    parts["own_calibration"] = own_set(plain.get("calibration"), parts.get("method"), problems)
    parts["hold"] = coerce(
        hints["hold"], hold_of(plain.get("calibration")), "calibration.hold", problems
    )
    if "eval" in plain:
        parts["evaluators"] = evaluators(bare["eval"], problems)
    parts |= {
        key: make(kind, plain[key], key, problems)
        for key, kind in SECTIONS.items()
        if key in plain
    }
    values = {key: plain[key] for key in simple if key in plain}
    if isinstance(values.get("save"), str):
        values["save"] = [values["save"]]  # one is a list of one
    parts |= {key: coerce(hints[key], one, key, problems) for key, one in values.items()}
    if problems:  # several parts may refer to one option
        raise ConfigError("; ".join(dict.fromkeys(problems)))
    return Config(**parts, command=command, plain=plain)


def evaluators(node: Any, problems: list[str]) -> Mapping[str, Any] | None:
    """The objects below ``eval.evaluators``; the other keys of ``eval`` are what they refer to."""
    where, chosen = "eval", node
    if isinstance(node, Mapping):
        where, chosen = "eval.evaluators", node.get("evaluators", {})
    if not isinstance(chosen, Mapping):
        problems.append(f"{where}={chosen!r}: want a mapping of evaluators; eval=none has none")
        return None
    return {
        key: plugin(one, f"eval.evaluators.{key}", problems, "evaluate")
        for key, one in chosen.items()
    }
