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
from runs import configured, words
from torch import Tensor, nn
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


def test_the_advice_keeps_what_was_left_out_before() -> None:
    model = build("llama", intermediate_size=64)
    with_the_embeddings(model)
    with pytest.raises(UnsupportedModelError) as caught:
        plan(model, exclude=["*.o_proj"])
    assert pasted(str(caught.value)) == ["*.o_proj", "model.layers.0.mlp.up_proj"]


def test_what_is_no_matrix_product_stays_and_is_named() -> None:
    chosen = plan(build("lfm2"))
    assert [(one.name, one.why) for one in chosen.kept] == [
        (f"model.layers.{index}.conv.conv", "a convolution") for index in (0, 2)
    ]
    assert len(chosen.linears) == 17
    assert not plan(build("lfm2"), exclude=["*.conv.conv"]).kept


class Decays(nn.Module):
    """A parameter of two dimensions that no linear owns."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(rows, 32))


@pytest.mark.parametrize("rows", [8, 800])
def test_a_model_that_would_mostly_stay_is_refused(rows: int) -> None:
    """Up to a quarter of the weights may be parameters of no linear."""
    model = build("llama")
    block(model, 1).decays = Decays(rows)
    if rows == 8:
        (kept,) = plan(model).kept
        assert (kept.name, kept.weights) == ("model.layers.1.decays", 256)
        return
    with pytest.raises(
        UnsupportedModelError, match=r"decays\.decay \(800, 32\) is no linear's"
    ) as caught:
        plan(model)
    assert "% of the weights would stay" in str(caught.value)
    assert pasted(str(caught.value)) == ["model.layers.*.decays"]
    assert len(plan(model, exclude=["model.layers.1.decays"]).linears) == 21


def test_a_linear_that_is_called_twice_stays_and_is_named() -> None:
    model = build("llama")
    block(model, 1).mlp.register_forward_hook(
        lambda module, args, output: output + 0 * module.up_proj(args[0]).sum()
    )
    (kept,) = plan(model).kept
    assert (kept.name, kept.why) == ("model.layers.1.mlp.up_proj", "called 2 times in a forward")
    assert len(plan(model).linears) == 20


def test_a_linear_without_a_call_stays_and_is_named() -> None:
    """Of a sense that text has not, or one whose weight the model's code reads."""
    model = build("llama")
    for index in (0, 1):
        block(model, index).mlp.other = nn.Linear(32, 8)
    block(model, 1).mlp.register_forward_hook(
        lambda module, args, output: output + 0 * (args[0] @ module.other.weight.T).sum()
    )
    assert [(one.name, one.why) for one in plan(model).kept] == [
        ("model.layers.0.mlp.other", "no forward of text runs it"),
        ("model.layers.1.mlp.other", "read by the model's code without a call"),
    ]


def test_a_linear_with_another_forward_stays_and_is_named() -> None:
    class Halved(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) / 2

    model = build("llama")
    model.model.layers[2].mlp.up_proj = Halved(32, 48, bias=False)
    (kept,) = plan(model).kept
    assert (kept.name, kept.why) == (
        "model.layers.2.mlp.up_proj",
        "a linear whose forward is none",
    )


def test_a_list_of_which_only_some_run_is_refused() -> None:
    """As a mixture of plain modules: the next forward may take others."""
    model = build("llama")
    some = block(model, 1).mlp.some = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
    block(model, 1).mlp.register_forward_hook(
        lambda module, args, output: output + some[1](args[0])
    )
    with pytest.raises(
        UnsupportedModelError, match=r"mlp\.some\.0 does not run .* depends on values"
    ):
        plan(model)


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
