"""Tables in documents: what stands between ``<!-- table: … -->`` and ``<!-- end -->``.

    <!-- table: SET -->            the perplexities of the folder SET
    <!-- table: SET/NAME -->       another of its tables
    <!-- table: SET/NAME where bits=16,3 and method=gptq -->   some of its rows
    <!-- notes: SET -->            what the marks in all tables of SET mean, once

Each is followed by ``<!-- end -->``. Columns that say the same in all rows of a table become a line
below it. Notes stand below each table, but where the document has a place for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.tables.base import Table, plain

MAIN = "perplexity"  # the table of a place that names only a set
PLACE = re.compile(
    r"(?P<start><!-- (?P<kind>table|notes): (?P<set>[^\s/]+)(?:/(?P<table>\S+))?"
    r"(?: where (?P<where>.+?))? -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)
LETTER = re.compile(r"\([a-z]+\)")  # that a note explains


def fill(files: Sequence[Path], name: str, tables: Mapping[str, Table]) -> None:
    """Puts the tables of the set ``name`` into the places that ``files`` have for them.

    Raises:
        ValueError: one of them has no such place, or there is no such table; no file is changed then.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    done = {path: placed(text, name, tables) for path, text in texts.items()}
    for path, text in done.items():
        path.write_text(text, encoding="utf-8")


def placed(text: str, name: str, tables: Mapping[str, Table]) -> str:
    """``text`` with every place of the set ``name`` filled.

    Raises:
        ValueError: there is no such place, or no such table.
    """
    places = [match for match in PLACE.finditer(text) if match["set"] == name]
    if not places:
        raise ValueError(f"no place for a table: want <!-- table: {name} --> and <!-- end -->")
    return PLACE.sub(_Filling(name, tables, any(one["kind"] == "notes" for one in places)), text)


@dataclass(frozen=True)
class _Filling:
    """What a place is replaced by.

    Args:
        name: of the set.
        tables: of the set, by name.
        apart: notes have a place of their own.
    """

    name: str
    tables: Mapping[str, Table]
    apart: bool

    def __call__(self, match: re.Match[str]) -> str:
        if match["set"] != self.name:
            return match[0]
        if match["kind"] == "table":
            inside = self._table(match["table"] or MAIN, match["where"])
        else:
            inside = "".join(f"- {plain(note)}\n" for note in self._noted(match.string))
        return f"{match['start']}\n{inside}\n{match['end']}"

    def _table(self, name: str, conditions: str | None) -> str:
        shown = self._rows(name, conditions)
        return narrowed(replace(shown, notes=[]) if self.apart else shown).markdown()

    def _rows(self, name: str, conditions: str | None) -> Table:
        if name not in self.tables:
            known = ", ".join(self.tables) or "none"
            raise ValueError(f"table {name}: the set {self.name} has none; it has {known}")
        shown = self.tables[name]
        for condition in conditions.split(" and ") if conditions else ():
            column, _, texts = condition.partition("=")
            shown = shown.where(column, texts.split(","))
        cells = {cell.text for row in shown.rows for cell in row}
        notes = [one for one in shown.notes if not (at := LETTER.match(one)) or at[0] in cells]
        return replace(shown, notes=notes)

    def _noted(self, text: str) -> list[str]:
        """The notes of all tables of the set in this document, each once."""
        every = [
            note
            for match in PLACE.finditer(text)
            if match["set"] == self.name and match["kind"] == "table"
            for note in self._rows(match["table"] or MAIN, match["where"]).notes
        ]
        return list(dict.fromkeys(every))


def narrowed(table: Table) -> Table:
    """``table`` without those labels that are the same in all of several rows; a note says them.

    As it is where no label would be left to tell the rows by.
    """
    if len(table.rows) < 2:
        return table
    same = [at for at in range(table.labels) if len({row[at].text for row in table.rows}) == 1]
    kept = [at for at in range(len(table.header)) if at not in same]
    if not same or len(kept) == len(table.header) - table.labels:
        return table
    said = ", ".join(f"{table.header[at]} {table.rows[0][at].text}" for at in same)
    return replace(
        table,
        header=[table.header[at] for at in kept],
        rows=[[row[at] for at in kept] for row in table.rows],
        labels=table.labels - len(same),
        notes=[f"In every row: {said}.", *table.notes],
    )
