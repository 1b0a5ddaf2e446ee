"""Settings in words, for tables, legends and the console: ``range mse``, ``damping 0.1``, ``act order``."""

from __future__ import annotations

from harness.settings.flat import file_of

# {} is the value. Without an entry a setting is said by its name, see worded().
PHRASES = {
    "grid.bits": "{} bits",
    "grid.budget": "{} effective bits",
    "grid.group_size": "groups of {}",
    "grid.format.scales": "{} scales",
    "qep.damping": "QEP damping {}",
    "qep.skip": "QEP skips {}",
    "qep.overrides": "QEP alpha {}",
    "qep.dampings": "QEP dampings {}",
    "qep.statistics": "H of the {} stream",
    "qep.target": "target {}",
    "calibration.windows": "{} calibration windows",
    "calibration.length": "calibration windows of {} tokens",
    "calibration.holdout": "{} windows held out",
    "quantize.include": "quantised {}",
    "quantize.exclude": "left alone {}",
}
# What a few values of a few settings mean.
VALUES = {
    ("grid.group_size", "null"): "per channel",
    ("grid.format.symmetric", "true"): "symmetric",
    ("grid.format.symmetric", "false"): "asymmetric",
    ("grid.refit", "none"): "no refit",
    ("grid.refit", "scales"): "scales refitted",
    ("grid.refit", "round"): "refitted, rounded twice",
    ("transform", "none"): "no transform",
    ("overrides", "{}"): "no overrides",
    ("method.outliers.fraction", "0"): "no outliers",
    ("qep.overrides", "{}"): "one alpha",
    ("quantize.blocks", "null"): "all blocks",
}
# How methods, corpora and models are written; others go by their own names.
NAMES = {
    "none": "full precision",
    "rtn": "RTN",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "quantease": "QuantEase",
    "quip": "QuIP",
    "gptaq": "GPTAQ",
    "qronos": "Qronos",
    "qqa": "QQA",
    "wikitext2": "WikiText-2",
    "wikitext2_local": "WikiText-2 (local)",
    "ptb": "PTB",
    "c4": "C4",
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "piqa": "PIQA",
    "lambada_openai": "LAMBADA (OpenAI)",
    "storycloze_2018": "StoryCloze 2018",
    "smollm2_135m": "SmolLM2-135M",
    "gemma3_270m": "Gemma 3 270M",
}
PERCENT = {"method.outliers.fraction": "outliers"}  # shares
ROOMS = ("grid", "method", "qep", "quantize", "transform")  # that a name can do without


def worded(key: str, value: str) -> str:
    """A flat setting (``method.damping``, ``0.1``) in words: ``damping 0.1``.

    A truth is its name, with a "no" before it where it is false; a class is the name of its file.
    """
    if (key, value) in VALUES:
        return VALUES[key, value]
    if key in PERCENT:
        return f"{100 * float(value):.3g} % {PERCENT[key]}"
    if key.endswith("._target_"):
        return f"{named(key)} {file_of(value)}"
    if key in PHRASES:
        return PHRASES[key].format(value)
    if value in ("true", "false"):
        return f"{'' if value == 'true' else 'no '}{named(key)}"
    return f"{named(key)} {value}"


def named(key: str) -> str:
    """The words of a key: ``method.outliers.fraction`` is ``outliers fraction``."""
    first, _, rest = key.removesuffix("._target_").partition(".")
    said = rest if first in ROOMS and rest else key.removesuffix("._target_")
    return said.replace("tokens/", "tokens of ").replace("_", " ").replace(".", " ")
