"""A device on the CPU: tensors that say cuda:0, refuse to meet those of the host, and count who waits.

    with Standin() as device:           # factories, .to("cuda:0") and torch.cuda know one card
        do(config)                      # anything with device="cuda:0"
    device.waits                        # (file:line, function) -> how often a GPU would be waited for

All of it works at the level of torch's functions: below it, C++ makes scalars on devices that this build of
torch does not have. A wait is a value that is read (``item``, ``bool``, a mask as an index), a copy to the
host, and a copy from memory that is not pinned. :attr:`Standin.live` is what device tensors hold at a moment.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch
from queues import Queue, working_beside, working_on
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
NAME, MEMORY = "stand-in", 80 * 10**9
# Functions whose result, or its shape, is a value that the host has to know.
WAITS = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select",
    "equal", "unique", "bincount", "cpu", "__contains__", "argwhere", "allclose", "__format__",
    "__repr__", "histc", "to_sparse", "solve", "linalg_solve", "linalg_eigvalsh", "linalg_cholesky",
}  # fmt: skip
ATTRIBUTES = {"__get__", "__set__", "__delete__"}
# Pointwise functions take a scalar tensor of the host; these do not.
NO_SCALARS = {
    "linear", "matmul", "mm", "bmm", "addmm", "addmm_", "cat", "stack", "embedding", "gather",
    "index_select", "cholesky_solve", "addr_", "lerp",
}  # fmt: skip
PRODUCTS = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "addmm_", "addr_", "einsum",
    "scaled_dot_product_attention", "vecdot",
}  # fmt: skip
SUBMIT = ThreadPoolExecutor.submit
HARNESS = f"{Path(__file__).parent.parent / 'harness'}/"
active: Standin | None = None


class Labelled(Tensor):
    """A tensor of the stand-in; ``inner`` holds its values, on the host while it is ``away``."""

    inner: Tensor
    away: bool

    @staticmethod
    def __new__(cls, inner: Tensor) -> Labelled:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=CUDA)

    def __init__(self, inner: Tensor) -> None:
        assert type(inner) in (Tensor, nn.Parameter), type(inner)
        self.inner, self.away = inner, False
        if active is not None:
            active.holds(inner)

    def record_stream(self, queue: Any) -> None:
        """Memory is never given to others here while somebody has the tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} reached the dispatcher")


def is_cuda(x: Any) -> bool:
    return (isinstance(x, torch.device) and x.type == "cuda") or (
        isinstance(x, str) and x.partition(":")[0] == "cuda"
    )


def is_cpu(x: Any) -> bool:
    return x == CPU if isinstance(x, torch.device) else isinstance(x, str) and x == "cpu"


def unwrap(x: Any) -> Any:
    return x.inner if isinstance(x, Labelled) else CPU if is_cuda(x) else x


def is_there(x: Any) -> bool:
    return isinstance(x, Labelled) and not x.away


def wrap(out: Any, given: list[Labelled]) -> Any:
    """``out`` as tensors of the device; what is one of ``given`` comes back as itself."""

    def one(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, Labelled):
            return x
        own = next((one for one in given if one.inner is x), None)
        return Labelled(x) if own is None else own

    return tree_map(one, out)


def waited(what: str) -> None:
    """Counts a wait for the line that asked."""
    if active is not None:
        active.waits[place(), what] += 1


def place() -> str:
    """The line of the harness that is running, or that of the model's own code where it is."""
    frame, outer = sys._getframe(1), None
    while frame is not None and not frame.f_code.co_filename.startswith(HARNESS):
        if outer is None and "/transformers/" in frame.f_code.co_filename:
            outer = frame
        frame = frame.f_back
    found = outer or frame
    return "?" if found is None else f"{_short(found.f_code.co_filename)}:{found.f_lineno}"


def _short(path: str) -> str:
    return path.removeprefix(HARNESS).rpartition("/site-packages/")[2]


def called(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs ``func`` as a device would, on the values of the tensors that say they are there."""
    name = getattr(func, "__name__", str(func))
    flat = tree_leaves((args, kwargs))
    labelled = [x for x in flat if is_there(x)]
    asked = any(map(is_cuda, flat))
    if name in ("_parse_to", "device"):  # only read their arguments
        return func(*args, **kwargs)
    if name == "_has_compatible_shallow_copy_type":  # nn.Module.to: make a new parameter
        return not labelled and func(*args, **kwargs)
    if name == "__set__" and is_there(args[1]) and not isinstance(args[0], Labelled):
        args[0].__class__ = Labelled  # a parameter of the host, whose data are brought
        args[0]._is_param = True
    if name in ATTRIBUTES and isinstance(args[0], Labelled):
        return _attribute(func, name, args, labelled)
    if name == "pin_memory" and not labelled:
        return _pinned(args[0].clone())
    if kwargs.get("pin_memory") and not asked:
        return _pinned(func(*args, **{**kwargs, "pin_memory": False}))
    if not labelled and not asked:
        return func(*tree_map(unwrap, list(args)), **tree_map(unwrap, dict(kwargs)))
    if name in SPECIAL and isinstance(args[0], Tensor):
        return SPECIAL[name](func, args, kwargs, labelled)
    _refuse_mixing(name, args, flat, labelled)
    if name in WAITS:
        waited(name)
    if active is not None and name in PRODUCTS and torch.backends.cuda.matmul.allow_tf32:
        active.reduced[place()] += 1
    if asked and name in ("tensor", "as_tensor"):
        waited("values copied to the device")
    out = func(*tree_map(unwrap, list(args)), **tree_map(unwrap, dict(kwargs)))
    if labelled and any(map(is_cpu, kwargs.values())):
        return out
    return wrap(out, labelled)


def _attribute(func: Any, name: str, args: Any, labelled: list[Labelled]) -> Any:
    which = getattr(getattr(func, "__self__", None), "__name__", "")
    if name == "__get__" and which in ("device", "is_cuda", "is_cpu"):
        here = not args[0].away
        return {"device": CUDA if here else CPU, "is_cuda": here, "is_cpu": not here}[which]
    if name == "__set__" and which == "data":
        args[0].away = not is_there(args[1])
        args[0].inner = unwrap(args[1])
        return None
    return wrap(func(*map(unwrap, args)), labelled)


def _pinned(tensor: Tensor) -> Tensor:
    assert active is not None
    storage = tensor.untyped_storage()
    active.pinned[storage._cdata] = storage
    return tensor


def _copied_in(tensor: Tensor, non_blocking: bool) -> None:
    """A copy to the device waits unless it need not, and comes from pinned memory."""
    pinned = active is not None and tensor.untyped_storage()._cdata in active.pinned
    if not (non_blocking and pinned):
        waited("values copied to the device")


def _to(func: Any, args: Any, kwargs: Any, labelled: list[Labelled]) -> Any:
    targets = [
        x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device | str | Tensor)
    ]
    away = any(is_cpu(x) or (isinstance(x, Tensor) and not is_there(x)) for x in targets)
    there = any(is_cuda(x) or is_there(x) for x in targets)
    source, here = args[0], is_there(args[0])
    out = func(*map(unwrap, args), **{k: unwrap(v) for k, v in kwargs.items()})
    if here and away:
        if not (kwargs.get("non_blocking") and out.untyped_storage()._cdata in active.pinned):
            waited("copied to the host")
        return out.clone() if out is source.inner else out
    if not here and there:
        _copied_in(source, bool(kwargs.get("non_blocking")))
        if (queue := working_on()) is not None:
            return Labelled(queue.later(out))
        return Labelled(out.clone() if out is source else out)
    return wrap(out, labelled) if here else out


def _cpu(func: Any, args: Any, kwargs: Any, labelled: list[Labelled]) -> Any:
    waited("copied to the host")
    return args[0].inner.clone()


def _cuda(func: Any, args: Any, kwargs: Any, labelled: list[Labelled]) -> Any:
    return args[0].to(CUDA)


def _numpy(func: Any, args: Any, kwargs: Any, labelled: list[Labelled]) -> Any:
    raise TypeError("can't convert cuda:0 device type tensor to numpy")


def _copy(func: Any, args: Any, kwargs: Any, labelled: list[Labelled]) -> Any:
    into, source = args[0], args[1]
    hurried = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    unwrap(into).copy_(unwrap(source))
    if is_there(into) and not is_there(source):
        _copied_in(source, hurried)
    elif is_there(source) and not is_there(into):
        pinned = active is not None and into.untyped_storage()._cdata in active.pinned
        if not (hurried and pinned):
            waited("copied to the host")
    return into


def _index(func: Any, args: Any, kwargs: Any, labelled: list[Labelled]) -> Any:
    index = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
    if any(x.dtype == torch.bool for x in index):
        waited("a mask as an index")
    if not is_there(args[0]):
        raise RuntimeError("an index on cuda:0 of a tensor on the host")
    if any(not is_there(x) and x.ndim for x in index):
        waited("an index copied to the device")
    values = args[2:3]
    if any(isinstance(x, Tensor) and not is_there(x) and x.ndim for x in values):
        waited("values copied to the device")
    return wrap(func(*tree_map(unwrap, list(args))), labelled)


SPECIAL: dict[str, Callable[..., Any]] = {
    "to": _to, "cpu": _cpu, "cuda": _cuda, "numpy": _numpy, "__array__": _numpy, "copy_": _copy,
    "__getitem__": _index, "__setitem__": _index,
}  # fmt: skip


def _refuse_mixing(name: str, args: Any, flat: list[Any], labelled: list[Labelled]) -> None:
    plain = [x for x in flat if isinstance(x, Tensor) and not is_there(x)]
    if not labelled or name.endswith("_like"):
        return
    if any(x.ndim or name in NO_SCALARS for x in plain):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} got cuda:0 and "
            f"cpu {tuple(plain[0].shape)}"
        )


class Standin(TorchFunctionMode):
    """The device while it is entered; see the module's docstring.

    Attributes:
        waits: how often a device would be waited for, by line and function.
        reduced: products that were allowed to have fewer bits, by line.
        pinned: memory of the host that copies need not wait for, by its id.
        live: bytes that tensors of the device hold now, views counted once.
        peak: the most that they have held.
    """

    def __enter__(self) -> Standin:
        global active
        self.waits: Counter[tuple[str, str]] = Counter()
        self.reduced: Counter[str] = Counter()
        self.pinned: dict[int, Any] = {}
        self.live = self.peak = 0
        self._views: Counter[int] = Counter()
        self._patches = [
            patch.object(torch.cuda, name, one) for name, one in self._functions().items()
        ]
        known = lambda pool, work, *args: SUBMIT(pool, self._known, work, *args)  # noqa: E731
        self._patches.append(patch.object(ThreadPoolExecutor, "submit", known))
        for one in self._patches:
            one.start()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        active = self
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global active
        super().__exit__(kind, error, trace)
        active = None
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        for one in self._patches:
            one.stop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})

    def holds(self, inner: Tensor) -> None:
        """Counts the memory of a tensor until nobody has it any more."""
        if inner.layout != torch.strided:
            return  # a sparse tensor has others for its parts
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._views[key] += 1
        if self._views[key] == 1:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(inner, self._frees, key, size)

    def _frees(self, key: int, size: int) -> None:
        self._views[key] -= 1
        if not self._views[key]:
            self.live -= size

    def total(self, *, apart: tuple[str, ...] = ()) -> int:
        """All waits but those of the files in ``apart``."""
        return sum(n for (where, _), n in self.waits.items() if not where.startswith(apart))

    def said(self) -> str:
        """The waits, most frequent first, one a line."""
        return "\n".join(f"{n:6} {where}  {what}" for (where, what), n in self.waits.most_common())

    def _functions(self) -> dict[str, Any]:
        """What of torch.cuda the harness asks for."""
        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "get_device_name": lambda device=None: NAME,
            "mem_get_info": lambda device=None: (MEMORY - self.live, MEMORY),
            "reset_peak_memory_stats": self._forget,
            "max_memory_allocated": lambda device=None: self.peak,
            "current_stream": lambda device=None: Queue(),
            "Stream": Queue,
            "stream": working_beside,
        }

    def _known(self, work: Callable[..., Any], *args: Any) -> Any:
        """Does ``work`` on a thread that would not know the card: a mode of torch belongs to one."""
        TorchFunctionMode.__enter__(self)
        try:
            return work(*args)
        finally:
            TorchFunctionMode.__exit__(self, None, None, None)

    def _forget(self, device: Any = None) -> None:
        self.peak = self.live


@contextmanager
def uncounted() -> Iterator[None]:
    """Nothing of what happens inside is counted: tests look at values too."""
    global active
    before, active = active, None
    try:
        yield
    finally:
        active = before
