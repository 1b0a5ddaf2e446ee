"""Start tokens: where windows have them, for every way of preparing a text and every tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from alphabets import END, MASK, START, a_byte_a_token
from runs import configured, do, quiet_console
from transformers import PreTrainedTokenizerFast

from harness import pipeline
from harness.inputs.corpora import Corpus, HubText, LocalText, Tokens, WikiSummaries
from harness.inputs.heldout import HeldOut
from harness.inputs.token_files import TokenFile, save_tokens
from harness.inputs.tokenizing import Bos, put_before, start_of

WITH = a_byte_a_token(before=[START])
WITHOUT = a_byte_a_token()
WITH_TWO = a_byte_a_token(before=[MASK, START])
WITH_END = a_byte_a_token(after=[END])
SENTENCES = tiny.sentences(400, seed=1)
TEXT = "\n\n".join(SENTENCES)
DOCUMENTS = [" ".join(SENTENCES[at : at + 9]) for at in range(0, 400, 9)]
PREPARED = ("joined", "whole", "sampled", "documents")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("texts")
    (made / "text.txt").write_text(TEXT)
    rows = (json.dumps({"text": one}) for one in DOCUMENTS)
    (made / "documents.jsonl").write_text("\n".join(rows))
    return made


def corpus(folder: Path, prepared: str, bos: Bos = "auto") -> Corpus:
    text, documents = str(folder / "text.txt"), str(folder / "documents.jsonl")
    return {
        "joined": LocalText(text, windows=8, length=32, holdout=2, bos=bos),
        "whole": LocalText(text, length=100, bos=bos),
        "sampled": LocalText(text, windows=8, length=32, holdout=2, sample=True, bos=bos),
        "documents": HubText(
            documents, "made", preparation="documents", windows=8, length=200, bos=bos
        ),
    }[prepared]


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# Of windows as they were before there was a choice: of text alone, with this tokenizer.
HASHES = {
    "joined": "03d2335c513d5704899b93e32553378fb115e64733ab401830fc3eb39412b5d2",
    "whole": "ce649b9d662b079b888dc296df7aa47b43ab14e9da82d5f0be45e28dd3de9797",
    "sampled": "80b3d6b41bc4be65b11993fe129acf2f792f2cc2a2c70f72f70b4724877eeb1e",
    "documents": "4a2a733e478ab18cbcdc3eaadb55152486eb22414518c144c19b3a3ca9e0d125",
}


@pytest.mark.parametrize("bos", ["auto", "first", "none"])
@pytest.mark.parametrize("prepared", PREPARED)
def test_a_tokenizer_that_puts_nothing_before_a_text_has_windows_of_text_alone(
    prepared: str, bos: Bos, folder: Path
) -> None:
    found = corpus(folder, prepared, bos).tokens(WITHOUT, 0)
    assert found.hash == HASHES[prepared]
    assert found.start is not None and found.start.found == "none"
    assert str(found.start) == "no start token"


@pytest.mark.parametrize("bos", ["auto", "every"])
@pytest.mark.parametrize(("tokenizer", "before"), [(WITH, [START]), (WITH_TWO, [MASK, START])])
@pytest.mark.parametrize("prepared", PREPARED)
def test_every_window_is_the_start_token_and_text(
    prepared: str,
    tokenizer: PreTrainedTokenizerFast,
    before: list[str],
    bos: Bos,
    folder: Path,
) -> None:
    asked = corpus(folder, prepared, bos)
    found = asked.tokens(tokenizer, 0)
    windows = torch.cat([found.ids, found.heldout])
    assert windows.shape[1] == asked.length  # type: ignore[attr-defined]
    assert found.start is not None and found.start.found == "every"
    assert str(found.start) == f"{''.join(before)} before every window"
    start, rest = windows[:, : len(before)].tolist(), windows[:, len(before) :]
    assert start == [tokenizer.convert_tokens_to_ids(before)] * len(windows)
    texts = DOCUMENTS if prepared == "documents" else [TEXT]
    decoded = [tokenizer.decode(window) for window in rest]
    assert all(any(window in text for text in texts) for window in decoded)
    if prepared in ("joined", "whole"):  # in order, no token of text left out
        assert rest.flatten().tolist() == ids_of(TEXT, tokenizer)[: rest.numel()]


@pytest.mark.parametrize("prepared", ["joined", "whole"])
def test_first_is_the_joined_text_tokenised_once(prepared: str, folder: Path) -> None:
    found = corpus(folder, prepared, "first").tokens(WITH, 0)
    windows = torch.cat([found.ids, found.heldout])
    assert windows.flatten().tolist() == WITH(TEXT)["input_ids"][: windows.numel()]
    assert found.start is not None and found.start.found == "first"


def test_first_is_each_document_with_its_own_start_token(folder: Path) -> None:
    asked = HubText(
        str(folder / "documents.jsonl"), "made", preparation="documents", windows=40,
        length=2, bos="first",
    )  # fmt: skip
    longest = max(len(WITH(one)["input_ids"]) for one in DOCUMENTS)
    (whole,) = replace(asked, windows=1, length=longest).tokens(WITH, 0).ids.tolist()
    assert whole in [WITH(one)["input_ids"] for one in DOCUMENTS]
    begins = [
        bool(row[0] == WITH.bos_token_id)
        for seed in range(10)
        for row in asked.tokens(WITH, seed).ids
    ]
    # A window starts anywhere in its document, with the same chance: seldom at the very start.
    assert 0 < sum(begins) < len(begins) / 10


def test_first_at_random_is_the_text_with_one_start_token(folder: Path) -> None:
    text, own = str(folder / "text.txt"), len(WITH(TEXT)["input_ids"])
    found = LocalText(text, windows=own // 32, length=32, sample=True, bos="first")
    windows = found.tokens(WITH, 0).ids
    starts = (windows == WITH.bos_token_id).nonzero()
    assert starts[:, 1].tolist() == [0]
    (at,) = starts[:, 0].tolist()
    assert windows[at].tolist() == WITH(TEXT)["input_ids"][:32]


def test_none_is_text_alone(folder: Path) -> None:
    for prepared in PREPARED:
        asked = corpus(folder, prepared, "none")
        assert asked.tokens(WITH, 0).hash == HASHES[prepared]


def test_every_takes_the_tokenizer_s_start_token_where_it_puts_none(folder: Path) -> None:
    found = corpus(folder, "joined", "every").tokens(WITHOUT, 0)
    assert found.ids[:, 0].tolist() == [WITHOUT.bos_token_id] * 8
    nameless = a_byte_a_token()
    nameless.bos_token = None
    with pytest.raises(ValueError, match="no start token; allowed are auto, first, none"):
        corpus(folder, "joined", "every").tokens(nameless, 0)
    assert corpus(folder, "joined", "auto").tokens(nameless, 0).hash == HASHES["joined"]


def test_an_end_token_is_no_start_token(folder: Path) -> None:
    assert put_before(WITH_END) == ()
    assert start_of("auto", WITH_END).found == "none"
    for prepared in ("joined", "sampled", "documents"):
        assert corpus(folder, prepared).tokens(WITH_END, 0).hash == HASHES[prepared]


def test_held_out_windows_begin_as_the_others_do(folder: Path) -> None:
    calibration = corpus(folder, "joined")
    kept = calibration.tokens(WITH, 0).heldout
    chosen = HeldOut(calibration, seed=0).tokens(WITH, 3)
    assert torch.equal(chosen.ids, kept)
    assert chosen.start == calibration.tokens(WITH, 0).start
    assert chosen.ids[:, 0].tolist() == [WITH.bos_token_id] * 2


def test_values_and_lengths_that_can_t_be(folder: Path) -> None:
    with pytest.raises(ValueError, match="bos='evry': allowed are .*did you mean 'every'"):
        WikiSummaries(bos="evry")  # type: ignore[arg-type]
    text = str(folder / "text.txt")
    with pytest.raises(ValueError, match="length=2 leaves no room after <mask><s>"):
        LocalText(text, windows=2, length=2).tokens(WITH_TWO, 0)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """Windows of which the second begins with the start token, and one held out that doesn't."""
    ids = torch.arange(4, 4 + 32).view(4, 8)
    ids[1, 0] = WITH.bos_token_id
    save_tokens(tmp_path / "tokens.npz", windows=Tokens(ids[:3], ids[3:], "made"))
    return tmp_path / "tokens.npz"


def test_token_files_are_taken_as_they_stand_and_say_so(token_file: Path) -> None:
    with np.load(token_file) as arrays:
        stored = torch.from_numpy(arrays["windows"]).long()
    for bos in ("auto", "none"):
        asked = TokenFile(str(token_file), "windows", holdout=1, bos=bos)  # type: ignore[arg-type]
        found = asked.tokens(WITH, 0)
        assert torch.equal(torch.cat([found.ids, found.heldout]), stored)
        assert found.start is not None and found.start.found == "first"
        assert bool(found.note) == (bos == "auto")
    note = TokenFile(str(token_file), "windows").tokens(WITH, 0).note
    assert "puts <s> before a text, but 3 of 4 windows do not begin with it" in note
    assert TokenFile(str(token_file), "windows").tokens(WITHOUT, 0).note == ""


def test_every_prepends_to_the_windows_of_a_token_file(token_file: Path) -> None:
    plain = TokenFile(str(token_file), "windows").tokens(WITH, 0).ids
    led = TokenFile(str(token_file), "windows", bos="every").tokens(WITH, 0)
    assert led.ids[:, 0].tolist() == [WITH.bos_token_id] * 4
    assert led.start is not None and led.start.found == "every" and not led.note
    for at in (0, 2, 3):
        assert led.ids[at, 1:].tolist() == plain[at, :-1].tolist()
    assert torch.equal(led.ids[1], plain[1])  # begins with it already
    first = TokenFile(str(token_file), "windows", bos="first").tokens(WITH, 0)
    assert torch.equal(first.ids[0], led.ids[0]) and torch.equal(first.ids[1:], plain[1:])


def checkpoint(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tiny model with a tokenizer whose every token it knows, and a text."""
    from families import build

    build("llama", vocab_size=320).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    (folder / "text.txt").write_text(TEXT)
    return folder


def test_a_run_says_and_records_where_start_tokens_are(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, WITH)
    more = ("method=rtn", "qep.alpha=auto", "calibration.holdout=2", "eval.bos=first")
    console, told = quiet_console()
    config = configured(made, tmp_path / "results", *more)
    record = pipeline.run(config, console)
    assert record.summary["bos"] == {"calibration": "every", "text": "first"}
    assert record.config["calibration"]["bos"] == "auto"
    evaluated = record.config["eval"]["perplexity"]["corpora"]["text"]
    assert evaluated["bos"] == "first"
    (line,) = [one for one in told.getvalue().splitlines() if one.startswith("  calibration")]
    assert "2 held out · <s> before every window · seed 0" in line
    assert "  evaluation text, 4 windows of 16 tokens · <s> where a text begins" in told.getvalue()
    other = configured(made, tmp_path / "results", *more, "calibration.bos=none")
    assert other.run_id != config.run_id
    assert do(other).hashes["calibration"] != record.hashes["calibration"]


def test_the_perplexity_of_every_window_is_that_of_text_after_a_start_token(
    tmp_path: Path,
) -> None:
    made = checkpoint(tmp_path, WITH)
    config = configured(made, tmp_path / "results", "method=none")
    record = do(config)
    model = config.model.load().model
    ids = ids_of(TEXT, WITH)
    losses = []
    for at in range(4):
        window = torch.tensor([WITH.bos_token_id, *ids[at * 15 : (at + 1) * 15]])
        logits = model(window[None]).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]))
    expected = torch.stack(losses).mean().exp().item()
    assert record.metrics["perplexity/text"] == pytest.approx(expected, rel=1e-5)


def test_a_run_says_where_a_token_file_lacks_the_start_token(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, WITH)
    np.savez(tmp_path / "tokens.npz", evaluation=np.arange(4, 36).reshape(2, 16))
    words = (
        "method=none",
        "eval=tokens",
        f"eval.path={tmp_path / 'tokens.npz'}",
        "eval.windows=2",
    )
    console, told = quiet_console()
    pipeline.run(configured(made, tmp_path / "results", *words), console)
    assert "! tokens: the tokenizer puts <s> before a text, but 2 of 2" in told.getvalue()
