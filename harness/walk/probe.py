"""One tiny forward of text, watched: what runs, what it reads, what is changed in place afterwards.

Which modules are the decoder's blocks is seen here, from what a forward of text runs through, and never
from a family's name or a list's length: a wrapper's vision tower does not run, heads that predict
further tokens do not stand in the stream. A model is watched once; what was seen is kept while it lives.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from harness.walk.limits import probe_ids
from harness.walk.watching import Operands, Seen, choosing, evaluating, first_tensor, watching
from harness.walk.weightless import Weightless, WeightlessError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAK = 1e-3  # of a change of the last token, squared: what may reach the others by rounding alone
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class UnsupportedModelError(ValueError):
    """A model that can't be treated faithfully; the message names the module."""


@dataclass(frozen=True)
class Read:
    """A call of a linear: its name, and the number of the tensor that it read."""

    linear: str
    tensor: int


@dataclass(frozen=True)
class Observation:
    """What a forward of text ran through.

    Args:
        blocks: names of the decoder blocks in the order of their calls.
        reads: the calls of all linears in their order. Equal numbers are the very same tensor, not
            changed in between.
        overwritten: the linears and blocks whose output the model changes in place afterwards (Falcon
            adds the attention's output to the MLP's).
        experts: by the name of a mixture's experts, how many of them every token chooses.
        bare: linears whose weight the model's code reads without calling them (Mamba's ``dt_proj``).
        odd: those that return something else than the product of their input and their weight.
    """

    blocks: tuple[str, ...]
    reads: tuple[Read, ...]
    overwritten: frozenset[str]
    experts: Mapping[str, int]
    bare: frozenset[str]
    odd: frozenset[str]


_observed: WeakKeyDictionary[nn.Module, Observation] = WeakKeyDictionary()


def observe(model: PreTrainedModel) -> Observation:
    """What a forward of text runs through in ``model``, which may be without weights (meta device).

    Raises:
        UnsupportedModelError: no decoder, or one that can't be told from its other parts.
        WeightlessError: without weights the forward does not run.
    """
    if model not in _observed:
        _refuse_signatures(model)
        modules = _watched(model)
        with watching(modules) as seen, choosing(model) as choices, Operands() as operands:
            output = probing(model, model.base_model)
        if model.device.type != "meta":
            _refuse_hindsight(model, output)
        blocks = _decoder(model, modules, seen)
        reads = tuple(
            Read(call.name, seen.number(call))
            for call in seen.calls
            if isinstance(modules[call.name], nn.Linear | Conv1D)
        )
        called = {read.linear for read in reads}
        bare = {
            name
            for name, one in modules.items()
            if isinstance(one, nn.Linear | Conv1D) and id(one.weight) in operands.seen
        }
        _observed[model] = Observation(
            blocks,
            reads,
            seen.overwritten(),
            choices,
            frozenset(bare - called),
            frozenset(seen.odd),
        )
    return _observed[model]


def check_logits(model: PreTrainedModel) -> None:
    """Raises UnsupportedModelError for a model that does not return logits of every token."""
    output = probing(model, model)
    logits, wanted = getattr(output, "logits", None), (2, probe_ids(model).shape[1])
    if not isinstance(logits, Tensor) or logits.shape[:2] != wanted:
        raise UnsupportedModelError(
            f"{type(model).__name__}.forward returns {_described(output, logits)}: logits "
            "[windows, tokens, vocabulary] are needed"
        )


def decoder_blocks(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder blocks by name, in the order of their calls; see :func:`observe`."""
    return {name: model.get_submodule(name) for name in observe(model).blocks}


def _watched(model: nn.Module) -> dict[str, nn.Module]:
    """All linears, and the members of all containers that are more than a single matrix."""
    members = {
        id(one)
        for module in model.modules()
        if isinstance(module, CONTAINERS)
        for one in module.children()
        if any(True for _ in one.children())
    }
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) or id(module) in members
    }


def probing(model: PreTrainedModel, part: nn.Module) -> Any:
    """What ``part`` of the model returns for two windows that differ in the last token only."""
    tokens = probe_ids(model).repeat(2, 1)
    tokens[1, -1] = tokens[1, 0]
    weightless = model.device.type == "meta"
    inside: AbstractContextManager[Any] = Weightless() if weightless else nullcontext()  # type: ignore[no-untyped-call]
    # The tensors of inference mode count no versions.
    with torch.inference_mode(False), torch.no_grad(), evaluating(model), inside:
        try:
            return part(input_ids=tokens, use_cache=False)
        except Exception as error:  # whatever the model's own code asks of absent values
            reason = str(error).splitlines()[0] if str(error) else ""
            if not weightless:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: a forward of text fails ({type(error).__name__}: {reason})"
                ) from error
            raise WeightlessError(
                f"{type(model).__name__}: without its weights its forward does not run "
                f"({type(error).__name__}: {reason})"
            ) from error


def _described(output: Any, part: Any) -> str:
    shape = f" of {tuple(part.shape)}" if isinstance(part, Tensor) else ""
    return f"a {type(output).__name__}{shape}"


def _refuse_signatures(model: PreTrainedModel) -> None:
    """Refuses a forward that can't be told to do without a cache of keys and values."""
    for one in (model.base_model, model):
        parameters = inspect.signature(one.forward).parameters
        if "use_cache" not in parameters and not any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
        ):
            raise UnsupportedModelError(
                f"{type(one).__name__}.forward({', '.join(parameters)}) takes no use_cache: a decoder "
                "as transformers has them is needed"
            )


def _refuse_hindsight(model: PreTrainedModel, output: Any) -> None:
    """Refuses a model whose states ``[2, tokens, hidden]`` depend on a later token."""
    states = first_tensor(output.to_tuple() if isinstance(output, ModelOutput) else output)
    wanted = (2, probe_ids(model).shape[1])
    if not isinstance(states, Tensor) or states.shape[:2] != wanted:
        raise UnsupportedModelError(
            f"{type(model.base_model).__name__}.forward returns {_described(output, states)}: states "
            "[windows, tokens, hidden] are needed"
        )
    moved = (states[0].float() - states[1].float()).square().sum(-1)
    if moved[:-1].max() > LEAK * moved[-1]:
        raise UnsupportedModelError(
            f"{type(model).__name__}: what it makes of a token depends on later ones, as in an encoder; "
            "perplexities and likelihoods are of decoders"
        )


def _decoder(model: PreTrainedModel, modules: dict[str, nn.Module], seen: Seen) -> tuple[str, ...]:
    """The decoder blocks: members of one container, or of several that form one stream.

    Of all members that ran these are the outermost. Where several containers ran, those count whose
    members read each what the one before returned.
    """
    called = dict.fromkeys(
        call.name for call in seen.calls if not isinstance(modules[call.name], nn.Linear | Conv1D)
    )
    outermost = [name for name in called if not any(name.startswith(f"{one}.") for one in called)]
    lists: dict[str, list[str]] = {}
    for name in outermost:
        if any(one.ndim >= 2 for one in modules[name].parameters()):
            lists.setdefault(name.rpartition(".")[0], []).append(name)
    if not lists:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no list of decoder blocks runs in a forward of text"
        )
    if len(lists) == 1:
        return tuple(*lists.values())
    streams = {key: names for key, names in lists.items() if _is_stream(names, seen)}
    whole = [name for names in streams.values() for name in names]
    if not whole or not _is_stream(whole, seen):
        raise UnsupportedModelError(
            f"{type(model).__name__}: {' and '.join(streams or lists)} run in a forward of text, and not "
            "one after the other: which are the decoder's blocks can't be told"
        )
    return tuple(whole)


def _is_stream(names: Sequence[str], seen: Seen) -> bool:
    """Whether each of ``names`` is called once and reads the very tensor that the one before returned."""
    read = {name: [one.tensor for one in seen.calls if one.name == name] for name in names}
    returned = {name: [one.tensor for one in seen.returns if one.name == name] for name in names}
    return all(len(read[name]) == 1 for name in names) and all(
        read[after][0] is returned[before][0] for before, after in pairwise(names)
    )
