"""A run killed between checkpoints goes on from the last one and ends bit-equal, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny
from families import build
from runs import CONF, configured, do, quiet_console
from test_resume import contents

from harness import pipeline
from harness.records.record import CHECKPOINT, read_record
from harness.records.recorder import Recorder
from harness.settings.config import Config
from harness.settings.stopping import Checkpoint

pytestmark = pytest.mark.long  # whole runs

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml") if path.stem != "none")
QUICK = {"qqa": ("method.steps=5",), "quantease": ("method.iterations=3",)}


class KilledError(BaseException):
    """As abrupt as SIGKILL: the recorder writes nothing."""


@contextmanager
def killed_at(row: int) -> Iterator[None]:
    """The run ends for good when it wants to write its ``row``-th row of a linear."""
    layer: Callable[..., None] = Recorder.layer
    written = 0

    def dying(recorder: Recorder, values: dict[str, object]) -> None:
        nonlocal written
        if written == row:
            raise KilledError
        written += 1
        layer(recorder, values)

    with patch.object(Recorder, "layer", dying), pytest.raises(KilledError):
        yield


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like ``tiny_folder``, with weights stored the other way round."""
    folder = tmp_path_factory.mktemp("gpt2")
    tiny.save(folder)
    build("gpt2").save_pretrained(folder / "tiny")
    return folder


def checkpointed(folder: Path, results: Path, *more: str, every: str = "1") -> Config:
    return configured(
        folder, results, f"checkpoint.every={every}", "calibration.holdout=1",
        "eval.divergence=false", "baseline=false", *more,
    )  # fmt: skip


# Every method on both families; most with the slow tests, for the time they take.
QUICKLY = {("llama", "rtn"), ("llama", "gptaq"), ("gpt2", "gptq")}
CASES = [
    pytest.param(family, method, marks=[] if (family, method) in QUICKLY else pytest.mark.slow)
    for family in ("llama", "gpt2")
    for method in METHODS
]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_it_goes_on_and_ends_equal(
    family: str, method: str, tiny_folder: Path, gpt2_folder: Path, tmp_path: Path
) -> None:
    folder = tiny_folder if family == "llama" else gpt2_folder
    more = (f"method={method}", *QUICK.get(method, ()))
    do(checkpointed(folder, tmp_path / "whole", *more, every="null"))
    config = checkpointed(folder, tmp_path / "killed", *more)
    linears = 7 if family == "llama" else 4  # of one block
    for row in (linears + 1, 2 * linears + 2):  # in the second block, then in the third
        with killed_at(row):
            do(config)
        assert (config.directory / CHECKPOINT).is_dir()
    stages: list[int] = []
    correct = pipeline.next_stage
    with patch.object(
        pipeline,
        "next_stage",
        lambda *rest: (found := correct(*rest)) and (stages.append(found.stage.block), found)[1],
    ):
        record = do(config)
    assert set(stages) == {2}
    assert record.resumed == 2
    assert record.seconds["total"] > record.seconds["walk"] > 0
    assert not (config.directory / CHECKPOINT).exists()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_run_killed_while_it_is_evaluated_quantises_nothing_again(
    tiny_folder: Path, tmp_path: Path
) -> None:
    do(checkpointed(tiny_folder, tmp_path / "whole", every="null"))
    config = checkpointed(tiny_folder, tmp_path / "killed")
    with patch.object(pipeline, "evaluate", side_effect=KilledError), pytest.raises(KilledError):
        do(config)
    with patch.object(type(config.method), "quantize", side_effect=AssertionError):
        do(config)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_checkpoint_of_other_code_or_data_is_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    config = checkpointed(tiny_folder, tmp_path)
    with killed_at(8):
        do(config)
    with patch("harness.records.recorder.git_commit", lambda: "another"):
        record = do(config)
    assert record.resumed == 0
    assert len(read_record(config.directory).metrics) > 0


def test_a_checkpoint_of_other_batches_is_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    """Another order of summation is another figure in the last digits."""
    config = checkpointed(tiny_folder, tmp_path, "batch_tokens=32")
    other = replace(config, batch_tokens=64)
    assert other.run_id == config.run_id
    with killed_at(8):
        do(config)
    console, text = quiet_console()
    record = pipeline.run(other, console)
    assert record.resumed == 0 and record.environment["batch_tokens"] == 64
    said = "the checkpoint is of other code, data, machine or batch_tokens: left out"
    assert said in " ".join(text.getvalue().split())


def test_force_and_a_damaged_file_start_anew(tiny_folder: Path, tmp_path: Path) -> None:
    config = checkpointed(tiny_folder, tmp_path)
    with killed_at(8):
        do(config)
    assert do(replace(config, force=True)).resumed == 0
    config = checkpointed(tiny_folder, tmp_path, "seed=1")
    with killed_at(8):
        do(config)
    for path in (config.directory / CHECKPOINT).iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    assert do(config).resumed == 0


def test_every_counts_blocks(tiny_folder: Path, tmp_path: Path) -> None:
    config = replace(checkpointed(tiny_folder, tmp_path), checkpoint=Checkpoint(every=2))
    with killed_at(8):
        do(config)
    assert not (config.directory / CHECKPOINT).exists()
    with killed_at(15):
        do(config)
    names = [path.name for path in (config.directory / CHECKPOINT).iterdir()]
    assert names == ["00000-00007.safetensors"]  # two blocks of four stages
