"""Windows of text in any script: a character may be many tokens, a token many characters."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from alphabets import (
    START,
    a_byte_a_token,
    a_word_a_token,
    pieces_or_bytes,
    whole_words_or_nothing,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from harness.inputs.corpora import HubText, LocalText
from harness.inputs.tokenizing import NO_START, start_of
from harness.inputs.windows import document_windows, first_windows, random_windows

HAN = "的一是在了有和这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动"
THAI = "กขคงจฉชซญณดตถทธนบปผพฟภมยรลวศษสหอฮะาิีึืุูเแโใไ่้"
PICTURES = "😀🚀🌍🎉🧠🐍"
LONG = [f"{letter * 60}{number}" for letter in "abcdefgh" for number in range(8)]
SCRIPTS = {
    "han": lambda draw: "".join(draw.choices(HAN, k=draw.randint(1, 60))),
    "thai": lambda draw: "".join(draw.choices(THAI, k=draw.randint(1, 90))),
    "pictures": lambda draw: "".join(draw.choices(PICTURES, k=9)),
    "long": lambda draw: " ".join(draw.choices(LONG, k=draw.randint(1, 9))),
    "mixed": lambda draw: " ".join(draw.choices([HAN[:5], THAI[:9], LONG[0], "a", "1 2"], k=6)),
    "run": lambda draw: draw.choice("abc") * draw.randint(50, 300),
}
TOKENIZERS = {
    "bytes": a_byte_a_token(),
    "words": a_word_a_token(LONG),
    "pieces": pieces_or_bytes([*HAN, "中大", "国我以", *THAI[:20], "กขค", *LONG, " "]),
    "wordpiece": whole_words_or_nothing([*"abc12", *HAN, "aaaa", *THAI]),
    "start": a_byte_a_token(before=[START]),
}


def sentences(script: str, count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [SCRIPTS[script](draw) for _ in range(count)]


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@settings(deadline=None, max_examples=25)
@given(
    script=st.sampled_from(sorted(SCRIPTS)),
    kind=st.sampled_from(sorted(TOKENIZERS)),
    count=st.integers(1, 8),
    length=st.integers(2, 40),
    seed=st.integers(0, 99),
)
def test_first_windows_are_those_of_the_whole_text(
    script: str, kind: str, count: int, length: int, seed: int
) -> None:
    tokenizer = TOKENIZERS[kind]
    text = "\n\n".join(sentences(script, 80, seed))
    whole = ids_of(text, tokenizer)
    for bos in ("auto", "none"):
        start = start_of(bos, tokenizer)
        room = start.room(length, "text")
        if len(whole) < count * room:
            continue
        found = first_windows(text, tokenizer, count, length, "text", start)
        assert found[:, length - room :].flatten().tolist() == whole[: count * room]
        everything = first_windows(text, tokenizer, None, length, "text", start)
        assert len(everything) == len(whole) // room


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_random_windows_are_found_wherever_there_are_enough(script: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    text = " ".join(sentences(script, 150))
    whole = ids_of(text, tokenizer)
    length = 8
    count = len(whole) // length // 8
    found = random_windows(text, tokenizer, count, length, "text", seed=0)
    assert found.shape == (count, length)
    joined = " ".join(map(str, whole))
    inside = sum(" ".join(map(str, row)) in joined for row in found.tolist())
    # The others touch a cut, where a word is in two: here words as long as eight tokens' first guess.
    assert inside >= (0.0 if (script, kind) == ("long", "pieces") else 0.5) * count
    few = len(whole) // length + 1
    with pytest.raises(ValueError, match=f"the text has .* tokens; {few * length:,} are needed"):
        random_windows(text, tokenizer, few, length, "text", seed=0)


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_document_is_long_enough_where_its_tokens_are(script: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    documents = sentences(script, 40)
    lengths = sorted(len(ids_of(one, tokenizer)) for one in documents)
    length = max(2, lengths[20])
    enough = sum(one >= length for one in lengths)
    if enough:
        found = document_windows(documents, tokenizer, enough, length, "text", 0, NO_START)
        assert found.shape == (enough, length)
    with pytest.raises(ValueError, match=f"{enough} of 40 documents have {length} tokens or more"):
        document_windows(documents, tokenizer, enough + 1, length, "text", 0)


def test_documents_of_forty_characters_have_more_than_sixty_tokens(tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = ({"text": "".join(draw.choices(HAN, k=40))} for _ in range(50))
    path = tmp_path / "zh.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    corpus = HubText(str(path), "c4", preparation="documents", windows=4, length=64)
    assert corpus.tokens(TOKENIZERS["bytes"], 0).ids.shape == (4, 64)


def test_documents_without_text_are_none(tmp_path: Path) -> None:
    rows = [{"text": one} for one in ("", " \n" * 60, "\t" * 90, None, "words " * 30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    corpus = HubText(str(path), "c4", preparation="documents", windows=1, length=32)
    (window,) = corpus.tokens(TOKENIZERS["bytes"], 0).ids
    assert "words" in TOKENIZERS["bytes"].decode(window)
    path.write_text("\n".join(map(json.dumps, rows[:4])))
    for empty in (HubText(str(path), "c4", windows=1, length=8), LocalText(str(path), length=8)):
        with pytest.raises(ValueError, match="holds no text"):
            empty.tokens(TOKENIZERS["bytes"], 0)
