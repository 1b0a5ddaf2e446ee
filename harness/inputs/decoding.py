"""Bytes of local files become text: UTF-8, UTF-16 and UTF-32 by their marks, anything else refused."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

MARK = "\ufeff"  # the byte order mark, decoded
# Longer marks first: that of UTF-32 begins with that of UTF-16.
ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: Path) -> str:
    """The text of a file, its line ends (CRLF, CR) as LF, without byte order marks.

    A file without a mark is UTF-8. A mark may also begin a line, where files were put together.

    Raises:
        ValueError: in one line, for bytes that are not of the encoding, and for NUL characters, which
            UTF-16 without a mark reads as.
    """
    content = path.read_bytes()
    mark, encoding = next((one for one in ENCODINGS if content.startswith(one[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        at = len(mark) + error.start
        raise ValueError(
            f"{path}: byte {at:,} (0x{content[at]:02x}) is not {encoding.upper()}; save the file as UTF-8"
        ) from None
    if "\0" in text:
        at = content.index(b"\0")
        raise ValueError(
            f"{path}: byte {at:,} is NUL, which no text has; UTF-16 needs a byte order mark"
        )
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.lstrip(MARK).replace(f"\n{MARK}", "\n")


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file; bytes that are UTF-8 are text, others stay bytes.

    Raises:
        ValueError: in one line, for another kind of file, and for text that is not UTF-8.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (
        pyarrow.ArrowException,
        OSError,
    ) as error:  # Arrow's, and what it says of damaged pages
        if isinstance(error, OSError) and error.errno:
            raise  # of the system
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}: not a parquet file ({why})") from None
    columns = [list(_values(path, name, table[name])) for name in table.column_names]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(path: Path, name: str, column: pyarrow.ChunkedArray) -> Iterator[Any]:
    for number, one in enumerate(column, 1):
        try:
            value = one.as_py()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: row {number}: byte {error.start:,} of {name!r} is not UTF-8"
            ) from None
        yield _text_if_it_is(value) if isinstance(value, bytes) else value


def _text_if_it_is(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value  # a picture, say: nobody may ever ask for it


def without_mark(row: dict[str, Any]) -> dict[str, Any]:
    """``row`` without byte order marks at the start of its keys and texts."""
    return {
        key.lstrip(MARK): value.lstrip(MARK) if isinstance(value, str) else value
        for key, value in row.items()
    }
