"""Models whose blocks come and go: the same bits, and no more memory than a block takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from families import FAMILIES, build
from runs import configured, do
from test_checkpoints import killed_at
from test_resume import contents
from test_walk import TOKENS, batches, logits, perturbed
from torch import Tensor

from harness.numerics.device import Arrival, Courier
from harness.walk.architecture import plan
from harness.walk.streaming import StreamedBlock, in_step, resident, stream_blocks
from harness.walk.walk import Walk


class Carried(Courier):
    """Brings what is sent for at once, as ``place`` does."""

    def __init__(self, place: Callable[[Tensor], Tensor] = torch.clone) -> None:
        self.place = place

    def send(self, tensors: Sequence[Tensor]) -> Arrival:
        placed = [self.place(one) for one in tensors]
        return lambda: placed


HOST = Courier(torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "courier"), [*((family, Carried()) for family in FAMILIES), ("llama", HOST)]
)
def test_a_streamed_walk_gives_the_same_bits(
    family: str, courier: Courier, tmp_path: Path
) -> None:
    found = []
    for streaming in (False, True):
        model = build(family)
        if streaming:
            stream_blocks(model, courier, tmp_path)
        passed: dict[object, object] = {}
        with Walk(model, plan(model), batches(), batches(1)) as walk:
            for stage in walk:
                done = walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
                passed |= done.linears | done.blocks
        found.append((passed, model.state_dict(), logits(model, batches()[0])))
    (passed, weights, output), (passed_streamed, same, output_streamed) = found
    assert passed == passed_streamed
    assert weights.keys() == same.keys()
    assert all(torch.equal(weight, same[name]) for name, weight in weights.items())
    assert torch.equal(output, output_streamed)
    assert not list(tmp_path.iterdir())  # the files have lost their names


def test_a_walk_brings_each_block_once_and_two_at_a_time(tmp_path: Path) -> None:
    model, most, brought = build("llama", num_hidden_layers=6), 0, 0

    def place(tensor: Tensor) -> Tensor:
        nonlocal most, brought
        brought += 1
        most = max(most, sum(one.inside > 0 for one in blocks))
        return tensor.clone()

    blocks: list[StreamedBlock] = []
    blocks += stream_blocks(model, Carried(place), tmp_path)
    hosts = [[one.data_ptr() for one in block.parameters.values()] for block in blocks]
    chosen = plan(model)
    brought = 0
    with Walk(model, chosen, batches()) as walk:
        for stage in walk:
            at = stage.stage.block
            assert [i for i, one in enumerate(blocks) if one.inside] == [at]
            on_the_device = blocks[: at + 2]  # the next one comes while this one is worked on
            assert brought == sum(len(one.parameters) for one in on_the_device)
            walk.advance({n: perturbed(w) for n, w in stage.weights.items()})
    assert brought == sum(len(block.parameters) for block in blocks)
    assert most == 1  # while another one is being brought
    assert not any(block.inside for block in blocks)
    logits(model, torch.randint(3, TOKENS, (2, 8)))
    assert not any(block.inside for block in blocks)
    for block, before in zip(blocks, hosts, strict=True):
        after = [one.data_ptr() for one in block.parameters.values()]
        kept = [name for name, a, b in zip(block.parameters, before, after, strict=True) if a == b]
        assert kept == [name for name in block.parameters if "norm" in name]


def test_an_error_inside_a_block_gives_it_back(tmp_path: Path) -> None:
    model = build("llama")
    blocks = stream_blocks(model, Carried(), tmp_path)
    handle = model.model.layers[1].mlp.register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model, batches()[0])
    handle.remove()
    assert not any(block.inside for block in blocks)
    expected = logits(build("llama"), batches()[0])
    assert torch.equal(logits(model, batches()[0]), expected)


def test_resident_brings_a_block_and_keeps_what_was_changed(tmp_path: Path) -> None:
    model = build("llama")
    (block, *_) = stream_blocks(model, Carried(), tmp_path)
    module = model.model.layers[0]
    parameter = module.mlp.up_proj.weight
    host, value = parameter.data_ptr(), perturbed(parameter.data)
    with resident(module), resident(module):
        assert block.inside == 2 and parameter.data_ptr() != host
        parameter.data = value
    assert not block.inside and parameter.data_ptr() not in (host, value.data_ptr())
    assert torch.equal(parameter.data, value)
    with resident(build("llama").model.layers[0]):  # nothing to bring
        pass


@pytest.mark.long
def test_a_streamed_run_is_the_same_run(tiny_folder: Path, tmp_path: Path) -> None:
    plain = configured(tiny_folder, tmp_path / "plain")
    streamed = configured(tiny_folder, tmp_path / "streamed", "model.streaming=true")
    records = [do(plain), do(streamed)]
    assert records[0].run == records[1].run
    assert contents(plain.directory) == contents(streamed.directory)
    assert not list((tmp_path / "cache" / "streamed").iterdir())


@pytest.mark.long
def test_a_killed_streamed_run_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    words = ("model.streaming=true", "checkpoint.every=1")
    whole = configured(tiny_folder, tmp_path / "whole")
    parts = configured(tiny_folder, tmp_path / "parts", *words)
    do(whole)
    with killed_at(16):  # in the third of three blocks
        do(parts)
    assert do(parts).resumed == 1
    assert contents(whole.directory) == contents(parts.directory)


MEMORY = """
import re, sys
from pathlib import Path
import torch
from test_walk import batches, perturbed
from harness.numerics.device import Arrival, Courier
from harness.walk.architecture import plan
from harness.inputs.models import HubModel
from harness.walk.walk import Walk

torch.set_num_threads(1)
def held():  # without the pages of mapped files, which the system may take back
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", status).group(1))

model = HubModel(sys.argv[1], streaming=True).load().model
before, chosen = held(), plan(model)
with Walk(model, chosen, batches()) as walk:
    for stage in walk:
        walk.advance({name: perturbed(weight) for name, weight in stage.weights.items()})
print(held() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_depends_on_the_block_not_on_the_depth(tiny_folder: Path, tmp_path: Path) -> None:
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24}
    folder = tiny_folder.parent / "deep"
    model = build("llama", **size)
    shutil.copytree(tiny_folder / "tiny", folder)
    model.save_pretrained(folder)
    blocks = sum(one.numel() * 4 for one in model.model.layers.parameters())
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # The work itself takes 0.4 of that, at 6 blocks and at 48; weights that stay would be all of it more.
    assert int(done.stdout) < 0.6 * blocks


def test_forwards_in_step_share_a_block(tmp_path: Path) -> None:
    model = build("llama")
    plain = [logits(model, tokens) for tokens in batches()]
    brought: list[Tensor] = []

    def place(tensor: Tensor) -> Tensor:
        brought.append(tensor)
        return tensor.clone()

    blocks = stream_blocks(model, Carried(place), tmp_path)

    def forward(tokens: Tensor) -> Tensor:
        result: Tensor = model(input_ids=tokens, use_cache=False).logits
        return result

    brought.clear()
    with torch.inference_mode():
        found = in_step(forward, batches(), blocks)
    assert len(brought) == sum(len(one.parameters) for one in blocks)
    assert all(map(torch.equal, plain, found))

    def failing(tokens: Tensor) -> Tensor:
        if tokens is last:
            raise ArithmeticError("as it may")
        return forward(tokens)

    several = batches()
    last = several[-1]
    with torch.inference_mode(), pytest.raises(ArithmeticError, match="as it may"):
        in_step(failing, several, blocks)
    assert all(one.gate is None and not one.inside for one in blocks)
    assert torch.equal(logits(model, several[0]), plain[0])
