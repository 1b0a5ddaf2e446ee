"""A mixture's experts as plain linears; no family names.

transformers keeps the matrices of all experts of a layer in one 3-D parameter and says by attributes of
the module how they lie in it: ``has_gate``, ``has_bias``, ``is_transposed``, ``has_post_expert_norm``.
:func:`unfused` hangs a linear for every slice of it into the module instead, ``experts.3.gate_up_proj``
and ``experts.3.down_proj``; their weights are views, so nothing is copied. The module then computes by
:func:`by_linears`, which transformers calls in the place of the module's own forward: the same sums in
the same order, through linears that can be watched, stopped before and replaced like any other.

Every expert is called in every forward, in order, also with no rows: a forward has one path, whatever
the router chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATION = "linears"  # the name by which transformers knows by_linears
DECLARED = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")


class Transposed(Conv1D):
    """A linear whose weight is stored ``[in, out]``, with a bias or without."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.nx, self.nf = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """The product and then the bias, as the experts of transformers add it."""
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def unfused(model: PreTrainedModel) -> PreTrainedModel:
    """``model``, changed in place: its fused experts are linears; one without any is as it was."""
    fused = [module for module in model.modules() if is_fused(module)]
    for module in fused:
        for number, linears in enumerate(_slices(module)):
            module.add_module(str(number), nn.ModuleDict(linears))
        for name in [*module._parameters]:
            if name.removesuffix("_bias") in _stacks(module):
                del module._parameters[name]
    if fused:
        # Here, since it takes a second to load, which a run that is skipped need not wait for.
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, by_linears)
        model.set_experts_implementation(IMPLEMENTATION)
    return model


def fused(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of an unfused module as they were before: those of all experts, stacked."""
    found = {}
    for name in _stacks(module):
        linears: list[Any] = [expert[name] for expert in experts_of(module)]
        found[name] = torch.stack([one.weight.detach() for one in linears])
        if linears[0].bias is not None:
            found[f"{name}_bias"] = torch.stack([one.bias.detach() for one in linears])
    return found


def is_fused(module: nn.Module) -> bool:
    """Whether ``module`` holds fused experts as transformers declares them."""
    declared = all(hasattr(module, key) for key in DECLARED)
    return declared and all(module._parameters.get(name) is not None for name in _stacks(module))


def is_unfused(module: nn.Module) -> bool:
    """Whether ``module`` holds experts that :func:`unfused` has made linears."""
    return all(hasattr(module, key) for key in DECLARED) and isinstance(
        module._modules.get("0"), nn.ModuleDict
    )


def experts_of(module: nn.Module) -> list[nn.ModuleDict]:
    """The experts of an unfused module, in order."""
    return [one for one in module.children() if isinstance(one, nn.ModuleDict)]


def by_linears(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What the experts make of ``hidden [tokens, width]``.

    Args:
        module: the experts.
        hidden: what they read.
        top_k_index: the experts of each token ``[tokens, k]``; one past the last is none.
        top_k_weights: what the output of each of them counts ``[tokens, k]``.
    """
    first, second = _stacks(module)
    total = torch.zeros_like(hidden)
    rows = _rows(top_k_index, len(experts_of(module)))
    for expert, (slots, tokens) in zip(experts_of(module), rows, strict=True):
        inner = expert[first](hidden[tokens])
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        output = expert[second](inner)
        if module.has_post_expert_norm:
            output = module.post_expert_norm(output)
        output = output * top_k_weights[tokens, slots, None]
        total.index_add_(0, tokens, output.to(total.dtype))
    return total


def _rows(index: Tensor, experts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """By expert the places in ``index [tokens, k]`` that chose it: slots and tokens.

    Without values (on the meta device) every place is every expert's.
    """
    width = index.shape[-1]
    chosen = index.T.reshape(-1)  # slot by slot, as the experts of transformers gather their rows
    if index.is_meta:
        order = torch.arange(chosen.numel(), device=index.device)
        parts = [order] * experts
    else:
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen.clamp(max=experts), minlength=experts + 1).tolist()
        parts = list(torch.split(order, counts)[:experts])
    for places in parts:
        yield places // (chosen.numel() // width), places % (chosen.numel() // width)


def _stacks(module: Any) -> tuple[str, str]:
    """The names of the fused parameters: the first and the second projection."""
    return ("gate_up_proj" if module.has_gate else "up_proj"), "down_proj"


def _slices(module: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """By expert its linears, whose weights are views of the fused parameters."""
    made: Any = Transposed if module.is_transposed else _linear
    weights = {name: module.get_parameter(name).detach() for name in _stacks(module)}
    biases = {
        name: cast(Tensor, module.get_parameter(f"{name}_bias")).detach()
        if module.has_bias
        else None
        for name in weights
    }
    for number in range(len(next(iter(weights.values())))):
        yield {
            name: made(weight[number], None if (bias := biases[name]) is None else bias[number])
            for name, weight in weights.items()
        }


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear of ``weight [out, in]``."""
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made
