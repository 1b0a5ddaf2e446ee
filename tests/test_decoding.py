"""Encodings, byte order marks and line ends of local texts and questions."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from alphabets import a_byte_a_token
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evaluate.questions import local_questions
from harness.evaluate.zeroshot import ZeroShot
from harness.inputs import texts
from harness.inputs.corpora import HubText, LocalText

TEXT = "Größe, 大小, размер.\n\nA second paragraph: ﬁn de siècle 😀.\n" * 9
QUESTIONS = [{"query": f"größer als {n}?", "choices": ["了", f"{n}"], "gold": 1} for n in range(4)]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")  # the last three write a mark
MARKED = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff", "utf-32-be": b"\0\0\xfe\xff"}


def encoded(text: str, encoding: str) -> bytes:
    return MARKED.get(encoding, b"") + text.encode(encoding)


def windows(path: Path) -> torch.Tensor:
    return LocalText(str(path), length=16).tokens(a_byte_a_token(), 0).ids


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", [*ENCODINGS, *MARKED])
def test_a_text_is_the_same_text_in_every_encoding(
    encoding: str, ends: str, tmp_path: Path
) -> None:
    (tmp_path / "plain.txt").write_bytes(TEXT.encode())
    (tmp_path / "other.txt").write_bytes(encoded(TEXT.replace("\n", ends), encoding))
    assert torch.equal(windows(tmp_path / "other.txt"), windows(tmp_path / "plain.txt"))
    hub = HubText(str(tmp_path / "other.txt"), "name", length=16).tokens(a_byte_a_token(), 0)
    assert torch.equal(hub.ids, windows(tmp_path / "plain.txt"))


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", [*ENCODINGS, *MARKED])
def test_rows_and_questions_too(encoding: str, ends: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": one} for one in TEXT.split("\n\n")]
    content = lines(rows).replace("\n", ends)
    (tmp_path / "rows.jsonl").write_bytes(encoded(content, encoding))
    assert texts.local_rows(tmp_path / "rows.jsonl") == rows
    asked = tmp_path / "questions.json"
    asked.write_bytes(encoded(lines(QUESTIONS).replace("\n", ends), encoding))
    ZeroShot([str(asked)]).check()
    assert list(local_questions(str(asked))["test"]) == QUESTIONS


def test_marks_where_files_were_put_together_and_in_rows(tmp_path: Path) -> None:
    one = "\ufeff" + TEXT
    (tmp_path / "plain.txt").write_text(TEXT + TEXT, "utf-8")
    (tmp_path / "both.txt").write_text(one + one, "utf-8")
    assert torch.equal(windows(tmp_path / "both.txt"), windows(tmp_path / "plain.txt"))
    rows = [{"text": "One."}, {"text": "Two."}]
    marked = [{"\ufefftext": f"\ufeff{row['text']}"} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join("\ufeff" + lines([row]) for row in rows), "utf-8")
    (tmp_path / "marked.jsonl").write_text(lines(marked), "utf-8")
    data = datasets.Dataset.from_list(marked)
    data.to_parquet(tmp_path / "marked.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    for name in ("rows.jsonl", "marked.jsonl", "marked.parquet", "saved"):
        assert texts.local_documents(tmp_path / name) == ["One.", "Two."]


def test_line_ends_inside_of_a_row_are_text(tmp_path: Path) -> None:
    rows = [{"text": "One.\r\nTwo.\rThree.\u2028Four."}]
    (tmp_path / "rows.jsonl").write_text(lines(rows), "utf-8")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        assert texts.local_documents(tmp_path / name) == [rows[0]["text"]]


@pytest.mark.parametrize("name", ["bad.txt", "bad.jsonl", "bad.json", "bad.md", "bad"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "caf\xe9"}', r"byte 13 \(0xe9\) is not UTF-8; save the file as UTF-8"),
        (b'\xef\xbb\xbf{"text": "caf\xe9"}', r"byte 16 \(0xe9\) is not UTF-8"),
        ('{"text": "ab"}'.encode("utf-16-le"), "byte 1 is NUL, .* UTF-16 needs a byte order mark"),
        (b"\xff\xfe" + "ab".encode("utf-16-le") + b"c", r"byte 6 \(0x63\) is not UTF-16-LE"),
        ("大小".encode("gb18030"), r"byte 0 \(0xb4\) is not UTF-8"),
    ],
)
def test_other_bytes_are_refused_with_their_place(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: {said}") as caught:
        LocalText(str(tmp_path / name)).check()
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(content=st.binary(min_size=1, max_size=40))
def test_whatever_the_bytes_are_text_or_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    try:
        (found,) = texts.local_documents(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: byte ") and "\n" not in str(error)
    else:
        if not content.startswith((b"\xff\xfe", b"\xfe\xff")):
            plain = content.decode().replace("\r\n", "\n").replace("\r", "\n")
            assert found == plain.lstrip("\ufeff").replace("\n\ufeff", "\n")


def test_parquet_with_bytes_for_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    values = pyarrow.array([b"One.", "größer".encode(), None], pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)
    assert texts.local_documents(path) == ["One.", "größer"]
    values = pyarrow.array([b"One.", b"caf\xe9"], pyarrow.binary())
    good = ["One.", "Two."]
    pyarrow.parquet.write_table(pyarrow.table({"text": good, "other": values}), path)
    assert texts.local_documents(path) == good
    with pytest.raises(ValueError, match=r"row 2: 'other' holds bytes that are not UTF-8"):
        texts.local_documents(path, "other")
    ends = pyarrow.py_buffer(np.array([0, 4, 8], np.int32).tobytes())
    broken = pyarrow.StringArray.from_buffers(2, ends, pyarrow.py_buffer(b"One.caf\xe9"))
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    with pytest.raises(ValueError, match=r"row 2: byte 3 of 'text' is not UTF-8"):
        texts.local_documents(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some text of a row"] * 400}), path)
    damaged = bytearray(path.read_bytes())
    damaged[8:60] = bytes(byte ^ 0xFF for byte in damaged[8:60])
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"rows\.parquet: not a parquet file \(.+\)$"):
        texts.local_documents(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet: not a parquet file") as caught:
        texts.local_documents(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[1, 2], 7, {"en": "text"}, True])
def test_a_column_without_text_is_refused(value: object, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines([{"text": "One."}, {"text": value}]))
    with pytest.raises(
        ValueError, match=f"row 2: 'text' holds {type(value).__name__} and no text"
    ):
        LocalText(str(tmp_path / "rows.jsonl")).check()


def test_half_of_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a whole one: \\ud83d\\ude00"}\n{"text": "half: \\ud83d"}')
    with pytest.raises(ValueError, match="line 2 holds half of a surrogate pair"):
        texts.local_rows(path)


@pytest.mark.parametrize("key", [None, "text"])
def test_the_first_row_may_lack_the_text(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 0}\n{"id": 1, "text": "One."}\n{"id": 2, "text": "Two."}\n')
    assert texts.local_documents(path, key) == ["One.", "Two."]
    with pytest.raises(ValueError, match="no key 'txt'; it has id, text; did you mean 'text'"):
        texts.local_documents(path, "txt")
