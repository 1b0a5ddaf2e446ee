"""The model card of a saved checkpoint, from the record of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from harness.records.places import unplaced
from harness.records.record import CODES, Record

FEW = 8  # names that are listed
SHOWN = ("perplexity", "accuracy", "kl", "top1_agreement")  # families of metrics


def card(
    record: Record,
    origin: Mapping[str, str],
    kind: str,
    bits: float,
    notes: Sequence[str],
    dense: Sequence[str],
) -> str:
    """README.md of a checkpoint.

    Args:
        record: of the run, before its end.
        origin: ``base_model`` and ``license`` of the source, as far as they are known.
        kind: of the checkpoint.
        bits: that a quantised weight takes on disk.
        notes: what its user has to know, paragraphs.
        dense: quantised linears that it stores as dense weights.
    """
    known = record.summary
    method = str(known["method"])
    tags = ["qep-bench", kind, *([] if method == "none" else [method, f"{known['bits']}-bit"])]
    front = dict(origin) | {"library_name": "transformers", "tags": tags}
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", ""]
    lines += [f"# {record.run}", "", _what(record, kind, bits), ""]
    lines += [f"{one}\n" for one in notes]
    if dense:
        more = f" and {len(dense) - FEW} more" if len(dense) > FEW else ""
        lines += [
            "These linears are quantised, but stored as dense weights, since the kind has no place for "
            f"how: {', '.join(dense[:FEW])}{more}.",
            "",
        ]
    lines += ["## Measured", "", *_metrics(record), ""]
    command, config = unplaced(record.command, record.config, record.contents)
    lines += [
        "## How it was made",
        "",
        f"    {command or '(not from the command line)'}",
        "",
    ]
    commit = f", commit {record.git_commit}" if record.git_commit else ""
    lines += [
        f"with [qep-bench](https://arxiv.org/abs/2504.09629){commit}; the settings in "
        "full, files by their names and hashes:",
        "",
        "```yaml",
        yaml.safe_dump(config, sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
    ]
    licence = origin.get("license")
    said = (
        f"The source's licence ({licence}) holds for this."
        if licence
        else ("The licence of the source is not known here; it holds for this as well.")
    )
    return "\n".join([*lines, "## Licence", "", said, ""])


def _what(record: Record, kind: str, bits: float) -> str:
    known = record.summary
    if codes := known.get(CODES):
        return (
            f"{known['model']}, the numbers that its codes ({codes}) stand for, saved as {kind}."
        )
    if known["method"] == "none":
        return f"{known['model']} as it was loaded, unquantised, saved as {kind}."
    group = f"groups of {known['group_size']}" if known["group_size"] else "one scale a row"
    return (
        f"{known['model']}, linears quantised by {known['method']} to {known['bits']} bits "
        f"({known['format']}, {group}, range {known['range']}, transform {known['transform']}), "
        f"QEP at alpha {known['alpha']}; saved as {kind}. The codes are those that were measured: "
        f"{record.bits_per_weight:.3f} effective bits a weight, {bits:.3f} on disk here."
    )


def _metrics(record: Record) -> list[str]:
    found = [
        f"| {key} | {value:.6g} |"
        for key, value in record.metrics.items()
        if key.split("/")[0] in SHOWN
    ]
    if not found:
        return ["Nothing was measured."]
    return ["| metric | value |", "|---|---:|", *found]
