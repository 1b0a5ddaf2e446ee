"""What can't be quantised is refused with a way out that works as it is pasted into a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from families import build
from processes import run
from runs import configured, do, words
from torch import nn
from transformers import PreTrainedModel

from harness.walk.architecture import plan
from harness.walk.probe import UnsupportedModelError

Change = Callable[[PreTrainedModel], None]


def block(model: PreTrainedModel, index: int) -> nn.Module:
    return model.model.layers[index]


def same_parameter(model: PreTrainedModel) -> None:
    block(model, 2).mlp.up_proj.weight = block(model, 0).mlp.up_proj.weight


def same_memory(model: PreTrainedModel) -> None:
    block(model, 2).mlp.up_proj.weight.data = block(model, 0).mlp.up_proj.weight.data


def same_rows(model: PreTrainedModel) -> None:
    both = torch.randn(100, 32)
    block(model, 0).mlp.up_proj.weight.data = both[:64]
    block(model, 2).mlp.up_proj.weight.data = both[36:]


def same_module(model: PreTrainedModel) -> None:
    block(model, 2).mlp.up_proj = block(model, 0).mlp.up_proj


def same_block(model: PreTrainedModel) -> None:
    model.model.layers[2] = block(model, 0)


def within_a_block(model: PreTrainedModel) -> None:
    block(model, 1).mlp.up_proj.weight = block(model, 1).mlp.gate_proj.weight


def with_the_embeddings(model: PreTrainedModel) -> None:
    block(model, 0).mlp.up_proj.weight = model.model.embed_tokens.weight


def with_the_head(model: PreTrainedModel) -> None:
    block(model, 0).mlp.up_proj.weight.data = model.lm_head.weight.data


def with_a_buffer(model: PreTrainedModel) -> None:
    block(model, 1).register_buffer("copy", block(model, 1).mlp.gate_proj.weight.data.T)


SHARING: dict[Change, str] = {
    same_parameter: "layers.0.mlp.up_proj.weight and model.layers.2.mlp.up_proj.weight",
    same_memory: "layers.0.mlp.up_proj.weight and model.layers.2.mlp.up_proj.weight",
    same_rows: "layers.0.mlp.up_proj.weight and model.layers.2.mlp.up_proj.weight",
    same_module: "layers.0.mlp.up_proj.weight and model.layers.2.mlp.up_proj.weight",
    same_block: "layers.0.self_attn.q_proj.weight and model.layers.2.self_attn.q_proj.weight",
    within_a_block: "layers.1.mlp.gate_proj.weight and model.layers.1.mlp.up_proj.weight",
    with_the_embeddings: "layers.0.mlp.up_proj.weight and model.embed_tokens.weight",
    with_the_head: "layers.0.mlp.up_proj.weight and lm_head.weight",
    with_a_buffer: "layers.1.mlp.gate_proj.weight and model.layers.1.copy",
}


@pytest.mark.parametrize("change", SHARING, ids=lambda change: change.__name__)
def test_shared_parameters_are_refused(change: Change) -> None:
    model = build("llama", intermediate_size=64)
    change(model)
    with pytest.raises(UnsupportedModelError, match=re.escape(f"{SHARING[change]} share their")):
        plan(model)


def test_with_all_that_share_left_out_the_rest_is_quantised() -> None:
    model = build("llama")
    same_parameter(model)
    with pytest.raises(UnsupportedModelError, match=r"\(and 1 more\)") as caught:
        plan(model)
    names = pasted(str(caught.value))
    assert names == [f"model.layers.{index}.mlp.up_proj" for index in (0, 2)]
    assert len(plan(model, exclude=names).linears) == 21 - 2
    for name in names:  # what is rounded would be the other's too
        with pytest.raises(UnsupportedModelError, match="share their memory"):
            plan(model, exclude=[name])
    assert len(plan(model, blocks="1:2").linears) == 7


def test_what_is_tied_outside_of_the_blocks_is_no_matter() -> None:
    assert len(plan(build("llama", tie_word_embeddings=True)).linears) == 21


def pasted(message: str) -> list[str]:
    """The patterns of the advice in ``message``, as a shell and Hydra read them."""
    return list(configured(Path("unused"), Path("unused"), word_of(message)).quantize.exclude)


def word_of(message: str) -> str:
    """The word of the advice, out of its shell's quotes."""
    (quoted,) = re.findall(r"'quantize\.exclude=[^']*'", message)
    (word,) = shlex.split(quoted)
    return word


@pytest.mark.parametrize(
    ("family", "left", "linears"),
    [
        ("lfm2", ["model.layers.*.conv.conv"], 17),
        ("mixtral", ["model.layers.*.mlp.gate", "model.layers.*.mlp.experts"], 12),
    ],
)
def test_the_advice_works_as_it_is_pasted(
    family: str, left: list[str], linears: int, tmp_path: Path
) -> None:
    model = build(family)
    with pytest.raises(UnsupportedModelError) as caught:
        plan(model)
    assert pasted(str(caught.value)) == left
    assert len(plan(model, exclude=left).linears) == linears
    model.save_pretrained(tmp_path / "tiny")
    tiny.tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text(" ".join(tiny.sentences(200)))
    record = do(
        configured(tmp_path, tmp_path, f"quantize.exclude=[{','.join(left)}]", "method=rtn")
    )
    assert record.status == "done"


def test_the_advice_keeps_what_was_left_out_before() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        plan(build("mixtral"), exclude=["*.o_proj", "*.experts"])
    assert pasted(str(caught.value)) == ["*.o_proj", "*.experts", "model.layers.*.mlp.gate"]


def test_what_is_not_selected_is_no_matter() -> None:
    assert len(plan(build("mixtral"), include=["*.self_attn.*"]).linears) == 12
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.gate"):
        plan(build("mixtral"), exclude=["model.layers.0.mlp.*"], blocks="0:2")


def test_a_linear_that_is_called_twice_is_refused() -> None:
    model = build("llama")
    block(model, 1).mlp.register_forward_hook(
        lambda module, args, output: output + 0 * module.up_proj(args[0]).sum()
    )
    with pytest.raises(
        UnsupportedModelError, match=r"1\.mlp\.up_proj is called 2 times"
    ) as caught:
        plan(model)
    assert pasted(str(caught.value)) == ["model.layers.1.mlp.up_proj"]  # that of block 1 alone


def test_refusals_come_before_the_baseline(tiny_folder: Path, tmp_path: Path) -> None:
    """Groups, and a way out for those that do not divide; nothing is measured before."""
    build("llama", intermediate_size=40).save_pretrained(tmp_path / "tiny")
    tiny.tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text((tiny_folder / "text.txt").read_text())
    results = tmp_path / "results"
    ended = run(words(tmp_path, results, "group_size=16"), tmp_path)
    assert (ended.returncode, ended.stdout, list(results.rglob("*"))) == (
        2,
        "",
        [results / "local"],
    )
    assert ended.stderr == (
        "error: group_size=16: does not divide the 40 input columns of model.layers.0.mlp.down_proj "
        "(and of 2 more); group_size=8 divides them all; "
        "'quantize.exclude=[\"model.layers.*.mlp.down_proj\"]' leaves it in full precision\n"
    )
    word = word_of(ended.stderr)
    ended = run(words(tmp_path, results, "group_size=16", "method=rtn", word), tmp_path)
    assert ended.returncode == 0, ended.stderr
