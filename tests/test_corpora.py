from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from harness.inputs import texts
from harness.inputs.corpora import HubText, LocalText, WikiSummaries
from harness.inputs.heldout import HeldOut
from harness.inputs.token_files import TokenFile, save_tokens
from harness.inputs.windows import document_windows, first_windows, random_windows

CONF = Path(__file__).parents[1] / "conf"
TEXT = "\n\n".join(f"Number {n} is followed by {n + 1}, and so on." for n in range(600))


@pytest.fixture
def text_file(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_first_windows_are_those_of_the_whole_text(tiny_tokenizer):
    whole = tiny_tokenizer(TEXT)["input_ids"]
    found = first_windows(TEXT, tiny_tokenizer, 7, 33, "text")
    assert found.flatten().tolist() == whole[: 7 * 33]
    everything = first_windows(TEXT, tiny_tokenizer, None, 33, "text")
    assert len(everything) == len(whole) // 33


def test_random_windows_do_not_overlap_and_follow_the_seed(tiny_tokenizer):
    arguments = (TEXT, tiny_tokenizer, 40, 16, "text")
    found = random_windows(*arguments, seed=3)
    assert torch.equal(found, random_windows(*arguments, seed=3))
    assert not torch.equal(found, random_windows(*arguments, seed=4))
    decoded = [tiny_tokenizer.decode(window) for window in found]
    assert all(window in TEXT for window in decoded)
    assert len(set(decoded)) == 40  # numbers make every place of the text different


def test_random_windows_of_a_long_text_tokenise_a_part(tiny_tokenizer):
    seen = 0

    def counting(batch, **options):
        nonlocal seen
        seen += sum(map(len, batch))
        return tiny_tokenizer(batch, **options)

    long = TEXT * 40
    found = random_windows(long, counting, 4, 16, "text", seed=0)
    assert found.shape == (4, 16)
    assert seen < len(long) / 4


def test_one_window_from_each_document(tiny_tokenizer):
    documents = [f"Document {n}: " + "word " * 50 for n in range(30)] + ["short"] * 30
    found = document_windows(documents, tiny_tokenizer, 20, 40, "c4", seed=1)
    assert found.shape == (20, 40)
    assert torch.equal(found, document_windows(documents, tiny_tokenizer, 20, 40, "c4", seed=1))
    with pytest.raises(ValueError, match="30 of 60 documents have 40 tokens or more; 31 are"):
        document_windows(documents, tiny_tokenizer, 31, 40, "c4", seed=1)


def test_wiki_splits_share_no_article(wiki):
    titles = {
        split: {one["title"] for one in texts.wiki_articles(split)} for split in texts.SPLITS
    }
    assert sum(len(part) for part in titles.values()) == len(wiki)
    assert set().union(*titles.values()) == {one["title"] for one in wiki}


def test_the_seed_moves_calibration_and_nothing_else(wiki, tiny_tokenizer):
    def hashes(split, **options):
        corpus = WikiSummaries(split, windows=4, length=32, **options)
        return [corpus.tokens(tiny_tokenizer, seed).hash for seed in (0, 0, 1)]

    first, again, other = hashes("calibration")
    assert first == again != other
    assert len(set(hashes("evaluation"))) == 1


def test_held_out_windows_come_after_the_others(wiki, tiny_tokenizer):
    whole = WikiSummaries(windows=6, length=32).tokens(tiny_tokenizer, 0)
    parts = WikiSummaries(windows=4, length=32, holdout=2).tokens(tiny_tokenizer, 0)
    assert torch.equal(torch.cat([parts.ids, parts.heldout]), whole.ids)
    assert whole.heldout.shape == (0, 32)


def test_options_are_chosen_on_windows_that_no_statistic_has(wiki, tiny_tokenizer):
    calibration = WikiSummaries("calibration", 8, 16, holdout=3)
    kept = calibration.tokens(tiny_tokenizer, seed=5)
    chosen = HeldOut(calibration, seed=5).tokens(tiny_tokenizer, seed=0)
    assert torch.equal(chosen.ids, kept.heldout) and not len(chosen.heldout)
    assert not (chosen.ids[:, None] == kept.ids).all(dim=2).any()
    with pytest.raises(ValueError, match="set calibration.holdout"):
        HeldOut(WikiSummaries("calibration", 8, 16), seed=5).check()


def test_the_hash_sees_content_and_shape(wiki, tiny_tokenizer):
    tokens = WikiSummaries(windows=4, length=32).tokens(tiny_tokenizer, 0)
    reshaped = type(tokens)(tokens.ids.view(8, 16), tokens.heldout, tokens.name)
    assert reshaped.hash != tokens.hash
    assert type(tokens)(tokens.ids.clone(), tokens.heldout, "other").hash == tokens.hash


def test_too_few_tokens_are_counted(wiki, tiny_tokenizer, text_file):
    with pytest.raises(ValueError, match=r"corpus wiki: the text has [\d,]+ tokens; 3,200,000"):
        WikiSummaries(windows=100, length=32000).tokens(tiny_tokenizer, 0)
    with pytest.raises(ValueError, match=r"corpus text: .* 1,000,000 are needed"):
        LocalText(str(text_file), windows=1, length=10**6, sample=True).tokens(tiny_tokenizer, 0)


def test_local_kinds_agree(tmp_path, tiny_tokenizer):
    documents = ["One document.", "Another one, a little longer.", "And the last of the three."]
    rows = datasets.Dataset.from_dict({"text": documents, "id": [1, 2, 3]})
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(str(tmp_path / "saved"))
    lines = "".join(json.dumps({"text": one}) + "\n" for one in documents)
    (tmp_path / "rows.jsonl").write_text(lines + "\n")
    (tmp_path / "rows.txt").write_text("\n\n".join(documents))
    hashes = {
        LocalText(str(tmp_path / name), windows=2, length=8).tokens(tiny_tokenizer, 0).hash
        for name in ("rows.parquet", "saved", "rows.jsonl", "rows.txt")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, r"no such file; did you mean '.*text\.txt'"),
        ("empty.txt", "", "the file is empty"),
        ("blank.txt", " \n", "holds no text"),
        ("broken.jsonl", '{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("list.jsonl", "[1]", "line 1 is not a JSON object"),
        ("two.jsonl", '{"question": "a", "answer": "b"}', "which key .* question, answer"),
    ],
)
def test_bad_files(tmp_path, text_file, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        LocalText(str(tmp_path / name)).check()
    assert "\n" not in str(caught.value)


def test_an_unknown_key_lists_the_keys(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"context": "a", "continuation": "b"}')
    with pytest.raises(ValueError, match="it has context, continuation; did you mean 'context'"):
        LocalText(str(tmp_path / "rows.jsonl"), key="contxt").check()


def test_several_splits_are_named(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"saved/train, .*saved/test"):
        LocalText(str(tmp_path / "saved")).check()


def test_exact_tokens(tmp_path, wiki, tiny_tokenizer):
    tokens = WikiSummaries(windows=4, length=32, holdout=1).tokens(tiny_tokenizer, 0)
    path = tmp_path / "tokens.npz"
    save_tokens(path, calibration=tokens)
    read = TokenFile(str(path), "calibration", holdout=1).tokens(tiny_tokenizer, 0)
    assert torch.equal(read.ids, tokens.ids)
    assert torch.equal(read.heldout, tokens.heldout)
    assert read.hash == tokens.hash
    assert read.ids.dtype == torch.int64
    short = TokenFile(str(path), "calibration", windows=2, length=8).tokens(tiny_tokenizer, 0)
    assert torch.equal(short.ids, tokens.ids[:2, :8])


def test_bad_token_files(tmp_path, tiny_tokenizer):
    path = tmp_path / "tokens.npz"
    np.savez(path, good=np.zeros((2, 8), int), flat=np.arange(3), real=np.ones((2, 2)))
    cases = {
        "goood": "it has good, flat, real; did you mean 'good'",
        "flat": r"int64 \[3\]; ids \[windows, length\] are needed",
        "real": "float64",
    }
    for key, message in cases.items():
        with pytest.raises(ValueError, match=message):
            TokenFile(str(path), key).check()
    with pytest.raises(ValueError, match=r"holds 2 windows of 8 tokens; 3 \+ 0 held out of 8"):
        TokenFile(str(path), "good", windows=3).check()
    np.savez(path, good=np.full((2, 8), 300))
    with pytest.raises(ValueError, match="token id 300, but the tokenizer has 300"):
        TokenFile(str(path), "good").tokens(tiny_tokenizer, 0)
    np.savez(path, huge=np.full((2, 8), 2**63 + 5, np.uint64), object=np.array([[None]]))
    with pytest.raises(ValueError, match="huge holds 9223372036854775813, which is no token id"):
        TokenFile(str(path), "huge").check()
    with pytest.raises(ValueError, match=r"tokens\.npz: object can't be read \(Object arrays"):
        TokenFile(str(path), "object").check()
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match="not an npz file"):
        TokenFile(str(tmp_path / "text.npz"), "good").check()


COMMIT = "0123456789abcdef" * 2 + "01234567"
Info = namedtuple("Info", "sha")


def test_hub_text(monkeypatch, tiny_tokenizer):
    rows = datasets.Dataset.from_dict({"text": TEXT.split("\n\n")})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    joined = HubText("owner/name", "name", windows=4, length=32).tokens(tiny_tokenizer, 0)
    assert torch.equal(joined.ids, first_windows(TEXT, tiny_tokenizer, 4, 32, "text"))
    documents = HubText("owner/name", "c4", preparation="documents", windows=4, length=8)
    assert documents.tokens(tiny_tokenizer, 0).ids.shape == (4, 8)
    with pytest.raises(ValueError, match="no column 'texts'; it has text; did you mean 'text'"):
        HubText("owner/name", "name", column="texts").tokens(tiny_tokenizer, 0)


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ValueError, match=r"can't be reached \(no route\); give a local file"):
        HubText("owner/name", "name").check()
    (tmp_path / "owner___name" / "default" / "0.0.0" / COMMIT).mkdir(parents=True)
    HubText("owner/name", "name").check()


def test_a_revision_is_never_replaced_by_what_was_prepared_last(monkeypatch, tmp_path):
    import huggingface_hub

    other = "f" * 40
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "datasets" / "owner___name" / "default" / "0.0.0" / other).mkdir(parents=True)
    rows, asked = datasets.Dataset.from_dict({"text": ["a river"]}), []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **o: asked.append(o["revision"]) or rows
    )

    def documents(revision):
        assert texts.hub_commit("owner/name", revision) == COMMIT
        texts.hub_documents("owner/name", None, "train", "text", revision)
        return asked.pop()

    assert documents(COMMIT) == COMMIT  # no network: the hub is not asked
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: Info(COMMIT))
    assert documents("v1") == COMMIT

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    said = r"can't be reached to ask for revision 'v1', whose commit would do \(no route\); give a"
    with pytest.raises(ValueError, match=said):
        HubText("owner/name", "name", revision="v1").check()
    assert texts.hub_commit("owner/name") == other  # what datasets reads offline
    home = tmp_path / "hub" / "datasets--owner--name"
    (home / "snapshots" / COMMIT).mkdir(parents=True)
    (home / "snapshots" / COMMIT / "README.md").touch()
    (home / "refs").mkdir()
    (home / "refs" / "v1").write_text(COMMIT)
    assert documents("v1") == COMMIT


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"windows=0 .*length=1 .*holdout=-1"):
        WikiSummaries(windows=0, length=1, holdout=-1)
    with pytest.raises(ValueError, match="did you mean 'evaluation'"):
        WikiSummaries("evaluate")


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "calibration").glob("*.yaml")))
def test_every_calibration_file_builds(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        needs_path = name in ("tokens", "text")
        overrides = [f"+calibration={name}", *(["calibration.path=F"] if needs_path else [])]
        corpus = instantiate(compose(overrides=overrides).calibration)
    assert corpus.holdout == 0
