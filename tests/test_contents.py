"""A run is of contents: what is overwritten in place is another input, what is moved is the same one."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from families import build
from runs import CONF, configured, do, quiet_console, words
from test_checkpoints import checkpointed, killed_at

from harness import pipeline
from harness.command import cli
from harness.evaluate.zeroshot import ZeroShot
from harness.inputs import contents
from harness.inputs.contents import contents_of, file_hash
from harness.inputs.corpora import HubText, LocalText
from harness.inputs.models import HubModel
from harness.inputs.token_files import TokenFile
from harness.methods.none import FullPrecision
from harness.records.record import CHECKPOINT, Record, read_record
from harness.records.whole import finished
from harness.settings.config import Config
from harness.settings.stale import notices

pytestmark = pytest.mark.long  # whole runs, or every composition

ALONE = ("baseline=false", "eval.divergence=false")
COMMITS = tuple(digit * 40 for digit in "ab")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint and text that a test may change."""
    shutil.copytree(tiny_folder, tmp_path / "inputs")
    return tmp_path / "inputs"


def content(part: object) -> str:
    (found,) = contents_of(part).values()
    return found


def overwrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Other bytes of the same length in the same file, which keeps its time of change."""
    before = path.stat()
    changed = change(path.read_bytes())
    assert len(changed) == before.st_size
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ino == before.st_ino


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def other_weights(folder: Path) -> None:
    """Another checkpoint over the one in ``folder``, every file of the same size."""
    model = build("llama")
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder / "tiny")


def told(config: Config) -> tuple[Record, list[str]]:
    """The record of a run, and the lines told about records that are not its own."""
    console, text = quiet_console()
    record = pipeline.run(config, console)
    return record, [line for line in text.getvalue().splitlines() if "record" in line]


def test_a_checkpoint_overwritten_in_place_is_another_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(folder, tmp_path, "method=rtn")
    first = do(config)
    other_weights(folder)
    second, lines = told(replace(config))
    assert second.run != first.run and second.baseline != first.baseline
    assert second.metrics["perplexity/text"] != first.metrics["perplexity/text"]
    assert [line.split(": ")[1:] for line in lines] == 2 * [
        [
            f"the checkpoint has changed since this record (model.path={folder / 'tiny'})",
            "another run",
        ]
    ]
    assert {Path(line.split(": ")[0]).name for line in lines} == {first.run, first.baseline}
    monkeypatch.setenv("QEP_BENCH_CACHE", str(tmp_path / "empty"))
    fresh = do(replace(config, results=str(tmp_path / "fresh")))
    assert fresh.samples == second.samples  # compared with the states of its own baseline
    other = do(replace(config, method=FullPrecision()))
    assert other.run == second.baseline
    for record in (first, second):
        assert finished(tmp_path / "local" / record.run) == record  # kept as it was


@pytest.mark.parametrize(
    ("what", "option", "name"),
    [
        ("calibration", "calibration.path={}", "cal.txt"),
        ("text", "eval.path={}", "eval.txt"),
        ("quiz", "eval.tasks=[{}]", "quiz.jsonl"),
    ],
)
def test_an_input_overwritten_in_place_is_another_input(
    what: str, option: str, name: str, folder: Path, tmp_path: Path
) -> None:
    path = folder / name

    def write(version: int) -> None:
        if what == "quiz":
            questions(path, version)
        else:
            path.write_text((folder / "text.txt").read_text()[1000 * version :])

    alone = () if what == "text" else ALONE
    write(0)
    config = configured(folder, tmp_path, "method=rtn", option.format(path), *alone)
    first = do(config)
    write(1)
    second, lines = told(replace(config))
    assert second.run != first.run
    assert second.baseline != first.baseline or alone
    assert {key for key in first.hashes if first.hashes[key] != second.hashes[key]} == {what}
    key = "calibration" if what == "calibration" else "eval"
    assert f"an input has changed since this record ({key}." in lines[0]
    assert len(lines) == (1 if alone else 2)
    assert do(replace(config)) == second


def questions(path: Path, gold: int) -> None:
    rows = [{"query": f"{n} a", "choices": ["river", "city"], "gold": gold} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_is_moved_is_the_same_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions(folder / "quiz.jsonl", 0)

    def run(where: Path) -> Config:
        return configured(
            where, tmp_path, "method=rtn", *ALONE, f"eval.tasks=[{where}/quiz.jsonl]"
        )

    first = do(run(folder))
    moved = folder.rename(tmp_path / "elsewhere")
    link = tmp_path / "link"
    link.symlink_to(moved)
    monkeypatch.chdir(tmp_path)
    for where in (moved, link, Path("elsewhere"), Path("..", tmp_path.name, "elsewhere")):
        config = run(where)
        assert config.settled() == first, where
        assert list(notices(config)) == []
    assert run(moved).identity()["model"]["path"] == str(moved / "tiny")  # to be read


def test_a_skipped_run_is_quick_and_reads_no_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(folder, tmp_path, "method=rtn", *ALONE)
    done = do(config)
    time.sleep(max(0.0, contents.RACY / 1e9 - age_of_the_youngest(folder)))
    assert replace(config).settled()  # now hashes are remembered
    read: list[Path] = []
    monkeypatch.setattr(contents, "_read", lambda path, state: read.append(path))
    spent = []
    for _ in range(5):
        contents._remembered.cache_clear()  # as in another process
        start = time.perf_counter()
        assert do(replace(config)) == done
        spent.append(time.perf_counter() - start)
    assert read == []
    assert min(spent) < 0.1


def age_of_the_youngest(folder: Path) -> float:
    changed = [path.stat().st_ctime for path in folder.rglob("*") if path.is_file()]
    return time.time() - max(changed)


def test_a_remembered_hash_does_not_survive_a_change_that_keeps_size_time_and_inode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    fresh = file_hash(path)
    overwrite(path, flipped)  # at once: in the tick of a coarse clock, perhaps
    assert (changed := file_hash(path)) != fresh
    monkeypatch.setattr(contents, "RACY", 0)  # old enough to be remembered
    assert file_hash(path) == changed
    time.sleep(0.02)
    overwrite(path, flipped)
    assert file_hash(path) == fresh


def test_a_file_that_is_being_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    whole = contents.hashlib.file_digest

    def meanwhile(file: object, kind: str) -> object:
        path.write_bytes(b"0123456789ab")
        return whole(file, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(contents.hashlib, "file_digest", meanwhile)
    with pytest.raises(ValueError, match="weights: is being written"):
        file_hash(path)


@pytest.mark.parametrize("moment", ["load", "evaluate"])
def test_what_changes_during_a_run_fails_it(
    moment: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(folder, tmp_path, "method=rtn", *ALONE)
    owner = HubModel if moment == "load" else pipeline
    whole = getattr(owner, moment)

    def meanwhile(*arguments: object) -> object:
        other_weights(folder)
        return whole(*arguments)

    monkeypatch.setattr(owner, moment, meanwhile)
    with pytest.raises(
        ValueError, match=r"model\.path=.*: changed during the run; start it again"
    ):
        do(config)
    assert read_record(config.directory).status == "failed"
    assert finished(config.directory) is None


# What of a checkpoint's directory decides figures, and what does not.
DECIDES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja", "modeling_mine.py", "tokenizer.model"),
    *("vocab.txt", "model.safetensors", "model.safetensors.index.json", "adapter_config.json"),
    *("additional_chat_templates/rag.jinja", "sub/model-00001.safetensors", "code/layers.py"),
)
DOES_NOT = ("README.md", ".cache/huggingface/x", "pytorch_model.bin", "run.log", "results/r.json")


def checkpoint(directory: Path) -> HubModel:
    for name in (*DECIDES, *DOES_NOT):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("{}")
    index = {"weight_map": {"a": "model.safetensors", "b": "sub/model-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return HubModel(str(directory), trust_remote_code=True)


@pytest.mark.parametrize("name", [*DECIDES, *DOES_NOT])
def test_every_file_that_decides_figures_is_part_of_a_checkpoint(
    name: str, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "model")
    before = content(model)
    path = tmp_path / "model" / name
    path.write_text(path.read_text() + " ")
    assert (content(model) != before) == (name in DECIDES)
    before = content(model)
    path.unlink()
    assert (content(model) != before) == (name in DECIDES)


def test_code_of_another_checkpoint_is_part_of_one_that_runs_it(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    code = tmp_path / "code" / "modeling.py"
    code.parent.mkdir()
    code.write_text("1")
    config = {"auto_map": {"AutoModelForCausalLM": f"{code.parent}--modeling.Mine"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    before, plain = content(model), content(HubModel(model.path))
    code.write_text("2")
    assert content(model) != before
    assert content(HubModel(model.path)) == plain


def test_a_cached_commit_of_the_hub_is_a_content(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commits in the hub's cache, and a branch that moves from one to the other; no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    home = cache / "models--owner--llama"
    (home / "refs").mkdir(parents=True)
    for commit in COMMITS:
        shutil.copytree(folder / "tiny", home / "snapshots" / commit)
        other_weights(folder)
    records = []
    for commit in COMMITS:
        (home / "refs" / "main").write_text(commit)
        config = configured(folder, tmp_path, "method=rtn", "model.path=owner/llama", *ALONE)
        assert config.settled() is None
        records.append(do(config))
        assert records[-1].contents["model.path"] == f"owner/llama@{commit}"
        assert config.settled() == records[-1]
    values = [one.metrics["perplexity/text"] for one in records]
    assert len(set(values)) == 2
    by_hand = configured(folder, tmp_path, "method=rtn", "model.path=owner/llama",
                         f"model.revision={COMMITS[0]}", *ALONE)  # fmt: skip
    assert do(by_hand).metrics == records[0].metrics


def test_forms_of_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text('{"text": "a river"}')
    lines = tmp_path / "text.jsonl"
    shutil.copy(text, lines)
    assert content(LocalText(str(text))) != content(LocalText(str(lines)))  # read otherwise
    assert content(LocalText(str(text))) == content(HubText(str(text), "name"))
    rows = [{"text": "a river"}, {"text": "a city"}]
    saved = [tmp_path / "one", tmp_path / "two", tmp_path / "other"]
    for path in saved:
        data = rows if path.name != "other" else rows[::-1]
        datasets.Dataset.from_list(data).save_to_disk(str(path))
    (saved[0] / "cache-1.arrow").write_text("what datasets leaves there")
    one, two, other = (content(LocalText(str(path))) for path in saved)
    assert one == two != other
    assert content(ZeroShot([str(saved[0])])) != content(ZeroShot([str(saved[1])]))  # their names
    np.savez(tmp_path / "ids.npz", a=np.ones((2, 4), int))
    before = content(TokenFile(str(tmp_path / "ids.npz"), "a"))
    np.savez(tmp_path / "ids.npz", a=np.zeros((2, 4), int))
    assert content(TokenFile(str(tmp_path / "ids.npz"), "a")) != before


TASK = """
include: base_template
task: numbers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
process_docs: !function helpers.clean
"""


@pytest.mark.parametrize("changed", ["numbers.yaml", "base_template", "helpers.py", "rows.json"])
def test_included_tasks_are_what_their_files_name(changed: str, tmp_path: Path) -> None:
    home, data = tmp_path / "tasks", tmp_path / "data"
    home.mkdir(), data.mkdir()  # noqa: B018
    (home / "numbers.yaml").write_text(TASK.format(data=data / "rows.json"))
    (home / "base_template").write_text("output_type: multiple_choice\n")
    (home / "helpers.py").write_text("clean = None\n")
    (data / "rows.json").write_text("{}\n")
    (home / "results").mkdir()
    (home / "results" / "config.yaml").write_text("model: x\n")
    task = ZeroShot(["numbers"], include=str(home))
    before = content(task)
    (home / "results" / "config.yaml").write_text("model: y\n")
    assert content(task) == before
    path = next(tmp_path.rglob(changed))
    path.write_text(path.read_text() + "\n")
    assert content(task) != before


def test_nothing_is_read_before_cheap_checks(folder: Path, tmp_path: Path, capsys) -> None:
    """A misspelt path is told before gigabytes are hashed."""
    arguments = words(folder, tmp_path, f"calibration.path={folder / 'txt.txt'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "_read", lambda *_: pytest.fail("read"))
        assert cli.main(print, CONF, arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no such file; did you mean" in said


def test_a_killed_run_goes_on_with_its_own_contents_only(folder: Path, tmp_path: Path) -> None:
    config = checkpointed(folder, tmp_path)
    with killed_at(8):
        do(config)
    kept = config.directory / CHECKPOINT
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    other_weights(folder)
    assert do(replace(config)).resumed == 0
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
