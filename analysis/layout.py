"""Groups of runs in rows and columns: what may share a row, and what a row has to say of itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.groups import HOLDOUT, Group
from analysis.noise import AROUND, MARK, Floor
from analysis.tables.base import MISSING, Cell, three
from harness.settings.flat import file_of, lettered
from harness.settings.said import worded

GAIN = "Small: the change that QEP makes against the same run without it, over the seeds that both have."
COLLAPSED = (
    "∞: the run collapsed, its figures are infinite or NaN; 1/∞: the one that it is compared with did; "
    "–: both did, which leaves the comparison unclear."
)
SPREAD = "± is the standard deviation over n seeds; perplexities are averaged as logarithms."
# Settings that the columns of every table name already.
NAMED = {"model.name", "method._target_", "grid.bits", "grid.group_size", "qep.alpha"}
OWN = "own"  # the axes that are as the method's authors have them, which the method's name says
CHOSEN = {"transform", "range", "format"}  # the axes that a method has some of its own for
CLASSES = ("grid.range", "grid.format")  # axes whose members have options of their own
SHARED = ("grid.format.symmetric", "grid.format.scales")  # of a format, and yet everybody's
# Axes that have a column of their own where rows differ in them.
AXES = {
    **dict(zip(("basis", "range", "levels"), AROUND, strict=True)),
    "target": "qep.target",
}
PLAIN = {
    "none": "–",
    "minmax": "min–max",
    "int": "uniform",
    "hadamard": "Hadamard",
    "gauss": "normal",
    "awq": "AWQ",
}
SECTION = 2  # the first labels, model and corpus: rows are compared inside of one
UNSAID = "asymmetric"  # the default: only what is symmetric says so
LONG = 60  # characters of settings that still fit into a cell


@dataclass
class Row:
    """A row in the making.

    Args:
        labels: model, corpus (or ""), and whatever else all its groups have in common.
        settings: what all its groups agree on.
        cells: column -> group.
    """

    labels: tuple[Any, ...]
    settings: dict[str, str] = field(default_factory=dict)
    cells: dict[str, Group] = field(default_factory=dict)

    @property
    def first(self) -> Group:
        """Any of its groups: model, method, bits and group size are those of all."""
        return next(iter(self.cells.values()))

    def says(self, key: str) -> bool:
        """Whether a setting is one of the row's own choices: the options of a method's own axes are not."""
        own = self.settings.get(OWN, "").split(",")
        return key != OWN and (key in AXES.values() or _axis(key) not in own)

    def takes(self, column: str, settings: Mapping[str, str]) -> bool:
        """Whether the cell is free and nothing that is known of the row is contradicted."""
        return column not in self.cells and all(
            self.settings.get(key, value) == value for key, value in settings.items()
        )


def lay_out(parts: Iterable[tuple[tuple[Any, ...], str, Group]]) -> list[Row]:
    """Rows of ``(labels, column, group)``: two groups share one only if all their settings agree.

    Two things that an alpha brings with it do not count: without QEP there are no settings of it, so
    that such a group stands in every row it fits; and ``auto`` sets calibration windows aside.
    """
    rows: list[Row] = []
    for labels, column, group in sorted(parts, key=lambda part: _freedom(part[2])):
        known = {key: value for key, value in group.settings.items() if key not in NAMED}
        loose = {key: value for key, value in known.items() if key != HOLDOUT}
        same = [row for row in rows if row.labels == labels]
        fitting = [row for row in same if row.takes(column, known)]
        if not fitting and group.alpha == "auto":
            known, fitting = loose, [row for row in same if row.takes(column, loose)]
        if not fitting:
            known = {key: value for key, value in group.settings.items() if key not in NAMED}
            fitting = [Row(labels)]
            rows += fitting
        for row in fitting if _freedom(group) else fitting[:1]:
            row.settings |= known
            row.cells[column] = group
    return rows


def row_of(group: Group, corpus: str) -> Row:
    """A row with one group in it."""
    known = {key: value for key, value in group.settings.items() if key not in NAMED}
    return Row((group.model, corpus), known, {"": group})


def _freedom(group: Group) -> int:
    """Groups that fit into several rows come last."""
    return 0 if group.corrects and group.alpha != "auto" else 1 if group.corrects else 2


@dataclass(frozen=True)
class Described:
    """What tells the rows of a table apart beyond their labels.

    Args:
        titles: a column each: axes, and ``settings`` for all else.
        cells: of every row one text a column.
        notes: what letters in them mean.
    """

    titles: list[str]
    cells: list[list[str]]
    notes: list[str]


def described(rows: Sequence[Row]) -> Described:
    """Axes in which rows differ as columns of short words, other settings in a column of phrases."""
    axes = {title: key for title, key in AXES.items() if _differ(rows, key)}
    said, explained = lettered(differences(rows, leave=AXES.values()), LONG)
    titles = [*axes, *(["settings"] if any(said) else [])]
    cells = []
    for row, words in zip(rows, said, strict=True):
        texts = [axis_word(row.settings.get(key, "none")) for key in axes.values()]
        cells.append([*texts, *([words or "–"] if any(said) else [])])
    return Described(titles, cells, [f"{one}." for one in explained])


def _differ(rows: Sequence[Row], key: str) -> bool:
    """Whether an axis says something; values that are the method's own are alike, as its name says them."""
    having = [row for row in rows if key in row.settings]
    alike = {_value(row, key) for row in having}
    return len(alike) > 1 and len({axis_word(row.settings[key]) for row in having}) > 1


def _value(row: Row, key: str) -> str:
    return OWN if _axis(key) in row.settings.get(OWN, "").split(",") else row.settings[key]


def as_published(settings: Mapping[str, str]) -> bool:
    """Whether no axis was chosen; a record that names none is of a method as published."""
    return OWN not in settings or set(settings[OWN].split(",")) >= CHOSEN


def around(settings: Mapping[str, str]) -> str:
    """The axes around a rounding: ``orthogonal, mse, normal``; a basis that is the model's own is unsaid."""
    words = [axis_word(settings.get(key, "none")) for key in AROUND]
    return ", ".join(one for one in words if one != PLAIN["none"])


def axis_word(value: str) -> str:
    """An axis in a cell or a legend: ``mse.MSE`` is mse, a chain its parts."""
    return " + ".join(PLAIN.get(one, one) for one in file_of(value).split("+"))


def differences(rows: Sequence[Row], leave: Collection[str] = ()) -> list[str]:
    """Per row, the settings in which it differs from others: ``16 calibration windows``.

    Options of a method, range or format are compared among the rows that have it, all else inside a
    section. Axes that are the method's own are all alike. What is in ``leave`` is told elsewhere.
    """
    values: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        for key in filter(row.says, row.settings):
            values.setdefault(_scope(row, key), set()).add(_value(row, key))
    said = [
        [
            worded(key, row.settings[key])
            for key in filter(row.says, row.settings)
            if key not in leave and len(values[_scope(row, key)]) > 1
        ]
        for row in rows
    ]
    return [", ".join(one for one in words if one != UNSAID) for words in said]


def _axis(key: str) -> str:
    """The axis that a setting belongs to, "" for those that every method has in common."""
    return "" if key in SHARED else key.removeprefix("grid.").partition(".")[0]


def _scope(row: Row, key: str) -> tuple[Any, ...]:
    """Among which rows a setting is compared: options of a method, range or format among its own."""
    section = row.labels[:SECTION]
    if key.startswith("method."):
        return *section, row.first.method, key
    axis = key.rpartition(".")[0]
    if axis in CLASSES and key not in SHARED:
        return *section, row.settings.get(f"{axis}._target_"), key
    return *section, key


def runs_of(rows: Iterable[Row]) -> list[str]:
    """The runs whose figures stand in these rows."""
    return [run for row in rows for group in row.cells.values() for run in group.runs.values()]


def notes(rows: Sequence[Row]) -> list[str]:
    """What the rows of a table leave unsaid about the groups in them."""
    every = [group for row in rows for group in row.cells.values()]
    said = []
    for row in rows:
        for group in row.cells.values():
            aside = group.settings.get(HOLDOUT)
            if group.alpha == "auto" and aside != row.settings.get(HOLDOUT, aside):
                said.append(
                    f"alpha auto sets {aside} of the calibration windows aside to choose on."
                )
    if any(group.lost for group in every):
        said.append("failed: the run ended in an error; stopped: given up as hopeless.")
    if any(len(group.finite) < len(group.values) for group in every):
        said.append("inf, nan and diverged: the model's figures overflowed.")
    return list(dict.fromkeys(said))


def cell(
    group: Group | None,
    best: bool = False,
    small: str = "",
    scale: float = 1.0,
    digits: str = "",
) -> Cell:
    """A group's mean, its spread over seeds, and what became of the seeds that have no figure."""
    if group is None:
        return MISSING
    count = len(group.finite)
    mean = scale * group.mean
    text = (f"{mean:{digits}}" if digits else three(mean)) if count else ""
    if count > 1:
        text += f" ± {scale * group.std:.2g} (n={count})"
    values: dict[str, Any] = {"": scale * group.mean if count else "", "n": count}
    if count > 1:
        values["std"] = scale * group.std
    trouble = _trouble(group)
    if trouble:
        text = f"{text}, {trouble}" if text else trouble
        values |= {"": values[""] if count else trouble, "trouble": trouble}
    return Cell(text.replace("-", "−"), best, small, values)


def _trouble(group: Group) -> str:
    diverged = [value for value in group.values.values() if not math.isfinite(value)]
    if len(group.runs) == 1:
        return next((f"{value:g}" for value in diverged), next(iter(group.lost.values()), ""))
    words = ["diverged"] * len(diverged) + list(group.lost.values())
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def is_best(group: Group, rivals: Iterable[Group], lower: bool, floor: Floor, metric: str) -> bool:
    """Whether no rival on the same tokens is better, over the seeds of both and beyond the noise.

    A failed seed rules a group out, and so does a rival that has none of its seeds and a better mean.
    """
    able = [one for one in rivals if one.whole and one.measured == group.measured]
    return (
        group.whole
        and bool(able)
        and all(
            (mine <= other if lower else mine >= other) or floor.explains(group, one, metric)
            for one in able
            for mine, other in [_means(group, one)]
        )
    )


def _means(group: Group, rival: Group) -> tuple[float, float]:
    """Of both, over the seeds that both have, if there are any."""
    mine, other = shared(group, rival)
    return (group.mean, rival.mean) if math.isnan(mine) else (mine, other)


def marked(gain: str, group: Group, twin: Group, floor: Floor, metric: str) -> str:
    """``gain`` with a mark where another order of summation explains it."""
    return f"{gain} {MARK}" if gain and floor.explains(group, twin, metric) else gain


def shared(group: Group, twin: Group) -> tuple[float, float]:
    """The means of both over the seeds that both have as numbers; NaN where there is none."""
    seeds = sorted(group.finite.keys() & twin.finite.keys())
    return (group.average(seeds), twin.average(seeds)) if seeds else (math.nan, math.nan)


def times(ratio: float) -> str:
    """A ratio of two figures; see :data:`COLLAPSED` for those that are not finite."""
    if math.isnan(ratio):
        return "–"
    return "∞" if math.isinf(ratio) else f"{ratio:.3f}" if ratio else "1/∞"


def signed(value: float, digits: str, unit: str) -> str:
    """``−47 %``; empty for what is not a number."""
    said = f"{value:+{digits}}"
    if not math.isfinite(value):
        return ""
    return f"{said if float(said) else said.lstrip('+-')}{unit}".replace("-", "−")
