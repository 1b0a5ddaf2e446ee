"""Windows that a model can't read are told before anything starts; tiny ones are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alphabets import START, a_byte_a_token
from families import FAMILIES, SMALL, SPECIAL, build
from runs import CONF, configured, quiet_console, words
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness import pipeline
from harness.command import cli
from harness.inputs.corpora import Tokens
from harness.inputs.fit import check_fit, notes
from harness.walk.architecture import plan
from harness.walk.limits import PROBE_TOKENS, longest, positions, probe_ids, vocabulary

# More families with a table of positions, of different makes, and what they are built with here.
TABLES: dict[str, dict[str, Any]] = {
    "opt": SPECIAL["opt"],
    "gpt2": SPECIAL["gpt2"],
    "gpt_neo": {"num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    "codegen": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "biogpt": {},
}
LIMIT = 64  # of all families here


def skeleton(family: str, **changes: Any) -> PreTrainedModel:
    options = {**SMALL, **TABLES.get(family, SPECIAL.get(family, {})), **changes}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options))


def reads(family: str, length: int) -> bool:
    options = {**SMALL, **TABLES.get(family, SPECIAL.get(family, {}))}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options)).eval()
    try:
        with torch.no_grad():
            model(torch.arange(length)[None] % 60 + 3, use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", sorted({*FAMILIES, *TABLES}))
def test_the_limit_is_where_the_model_s_own_forward_ends(family: str) -> None:
    model = skeleton(family)
    assert positions(model) == LIMIT
    assert longest(model) == (LIMIT if family in TABLES else None)
    assert reads(family, LIMIT)
    assert reads(family, LIMIT + 1) == (family not in TABLES)


def test_windows_are_held_against_positions_and_embeddings() -> None:
    def made(length: int, largest: int) -> dict[str, Tokens]:
        ids = torch.arange(2 * length).view(2, length) % 8
        ids[1, -1] = largest
        return {"wiki": Tokens(ids[:1], ids[1:], "wiki")}  # held-out windows count

    check_fit(made(64, 63), skeleton("gpt2"))
    with pytest.raises(ValueError, match="wiki: length=65: .* 64 positions; allowed are 2 to 64"):
        check_fit(made(65, 63), skeleton("gpt2"))
    with pytest.raises(ValueError, match=r"wiki: token id 64, but .* for the ids 0 to 63;"):
        check_fit(made(64, 64), skeleton("gpt2"))
    with pytest.raises(ValueError, match="token id -1"):
        check_fit(made(8, -1), skeleton("llama"))
    check_fit(made(65, 63), skeleton("llama"))
    assert list(notes(made(64, 63), skeleton("llama"))) == []
    (note,) = notes(made(65, 63), skeleton("llama"))
    assert note == "wiki: windows of 65 tokens, longer than the 64 of the checkpoint"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 4, 9])
def test_tiny_vocabularies_and_few_positions_are_probed(family: str, size: int) -> None:
    # Padding inside of the vocabulary, as everywhere.
    tiny = {"vocab_size": size, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    few = {"max_position_embeddings": 3} | ({"n_positions": 3} if family == "gpt2" else {})
    model = build(family, **tiny, **few)
    ids = probe_ids(model)
    assert ids.shape[1] == (3 if family in TABLES else PROBE_TOKENS)
    assert int(ids.min()) >= 0 and int(ids.max()) < vocabulary(model) == size
    assert [one.name for one in plan(model).linears] == [
        one.name for one in plan(build(family)).linears
    ]


def test_the_probe_reads_neither_the_first_ids_nor_padding() -> None:
    assert probe_ids(build("llama")).tolist() == [list(range(3, 11))]
    assert probe_ids(build("llama", pad_token_id=5)).tolist() == [[2, 3, 4, 6, 7, 8, 9, 10]]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A model with 64 positions and the ids of a tokenizer of 260, the start token the first."""
    build("gpt2", vocab_size=260).save_pretrained(tmp_path / "tiny")
    a_byte_a_token(before=[START]).save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("One line of words.\n" * 90)
    return tmp_path


def refused(made: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line that a command is refused with, nothing begun."""
    arguments = words(made, made / "results", *more)
    capsys.readouterr()
    assert cli.main(print, CONF, arguments) == cli.BAD_CONFIG
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert not list((made / "results").glob("*/*/*"))
    return told.err


@pytest.mark.parametrize(
    "more", [("method=none",), ("method=rtn",), ("method=none", "dry_run=true")]
)
def test_too_long_an_evaluation_is_refused(
    more: tuple[str, ...], made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(made, capsys, *more, "eval.length=65")
    assert (
        said
        == "error: text: length=65: the model has no more than 64 positions; allowed are 2 to 64\n"
    )


def test_too_long_a_calibration_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "calibration: length=65: " in refused(made, capsys, "calibration.length=65")


def test_too_long_windows_of_a_token_file_are_refused(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(made / "tokens.npz", evaluation=np.ones((4, 70), int))
    more = ("method=none", "eval=tokens", f"eval.path={made / 'tokens.npz'}")
    assert "tokens: length=70: " in refused(made, capsys, *more, "eval.length=null")


def test_ids_beyond_the_embedding_are_refused(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # "z" is the largest id of a letter: a tokenizer may know more ids than a text has.
    largest = max(a_byte_a_token()("One line of words.\n")["input_ids"])
    build("gpt2", vocab_size=largest + 1).save_pretrained(made / "tiny")
    assert pipeline.run(configured(made, made / "fits", "method=none"), quiet_console()[0])
    build("gpt2", vocab_size=largest).save_pretrained(made / "tiny")
    said = refused(made, capsys, "method=none")
    assert f"text: token id {largest}, but the model has embeddings for the ids 0 to" in said
    np.savez(made / "tokens.npz", evaluation=np.full((4, 16), 250))
    more = ("method=none", "eval=tokens", f"eval.path={made / 'tokens.npz'}")
    assert "tokens: token id 250, but" in refused(made, capsys, *more)


def test_a_start_token_beyond_the_embedding_is_refused(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = a_byte_a_token()
    tokenizer.add_special_tokens({"bos_token": "<begin>"})  # a row more than the model has
    tokenizer.save_pretrained(made / "tiny")
    more = ("method=none", "eval.bos=every")
    assert "text: token id 260, but the model has" in refused(made, capsys, *more)
    assert pipeline.run(configured(made, made / "fits", "method=none"), quiet_console()[0])


def test_start_tokens_that_are_not_there_are_refused(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = a_byte_a_token()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(made / "tiny")
    said = refused(made, capsys, "method=none", "eval.bos=every")
    assert said.startswith("error: evaluation: bos='every': the tokenizer has no start token")
    assert "bos" in refused(made, capsys, "method=none", "eval.bos=evry")


def test_longer_windows_than_in_training_are_noted(tiny_folder: Path, tmp_path: Path) -> None:
    console, told = quiet_console()
    more = ("method=none", "eval.length=80", "eval.windows=1")
    pipeline.run(configured(tiny_folder, tmp_path, *more), console)
    assert "! text: windows of 80 tokens, longer than the 64 of the checkpoint" in told.getvalue()
