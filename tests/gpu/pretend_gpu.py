"""A GPU that a CPU pretends to be: tensors with real values on a device of their own, and a count of what it is asked.

On it torch's CUDA backends run without a GPU, and what a GPU would refuse is refused: an operator over tensors of both
places, a view of the device's memory by the host. What costs time on a GPU is counted:

- operators: computed on the device, each at least one kernel. Views and allocations are none.
- uploads: host data that goes to the device, by whatever call: a copy, a list or a host tensor as an index, a scalar
  tensor among operands. From pageable memory each blocks the host as well.
- synchronising: the host needs something from the device before it can go on: a value, a copy, or a shape that depends
  on values.

The device is called "meta", the only one besides the CPU that every build of torch knows; no operator of torch's own
meta device runs. Each thread enters its own `PretendGPU`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from longspan.attention.partial import Partial
from longspan.attention.reference import ReferenceBackend

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_ALLOCATE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view",
             "detach", "alias"}  # fmt: skip
_FUSED = {"_fused_rms_norm"}  # one kernel on a GPU; elsewhere torch takes it apart
_SHAPE_FROM_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}


@dataclass
class Counts:
    """By operator's name."""

    operators: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    synchronising: Counter[str] = field(default_factory=Counter)

    def extrapolated(self, larger: Counts, times: int) -> Counts:
        """What so many times the difference to a larger one more would be."""

        def more(few: Counter[str], many: Counter[str]) -> Counter[str]:
            return Counter({name: few[name] + times * (many[name] - few[name]) for name in few | many})

        return Counts(
            more(self.operators, larger.operators),
            more(self.uploads, larger.uploads),
            more(self.synchronising, larger.synchronising),
        )

    def totals(self) -> dict[str, int]:
        return {
            "operators": self.operators.total(),
            "uploads": self.uploads.total(),
            "synchronising": self.synchronising.total(),
        }


class PretendGPU(TorchDispatchMode):
    """Makes `DEVICE` work while it is entered, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self._from_data = _FromData()

    def __enter__(self) -> PretendGPU:
        self._from_data.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._from_data.__exit__(*error)

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if func._can_decompose() and name not in _ALLOCATE | _FUSED:  # as torch does it for a real device
            super().__enter__()
            try:
                result = func.decompose(*args, **kwargs)
            finally:
                super().__exit__(None, None, None)
            if result is not NotImplemented:
                return result
        flat, _ = tree_flatten((args, kwargs))
        ours = [x for x in flat if isinstance(x, DeviceTensor)]
        hosts = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, DeviceTensor)]
        target = kwargs.get("device")
        to_device = bool(ours) if target is None else torch.device(target).type == DEVICE.type
        if name in ("_to_copy", "copy_"):
            into = to_device if name == "_to_copy" else isinstance(args[0], DeviceTensor)
            source = args[0] if name == "_to_copy" else args[1]
            self._count_copy(name, isinstance(source, DeviceTensor), into)
            to_device = into
        elif ours:
            self._count_operator(func, name, args, hosts)
        elif to_device and name not in _ALLOCATE:
            self.counts.operators[name] += 1  # filled on the device: zeros, arange
        return self._run(func, args, kwargs, to_device)

    def _count_copy(self, name: str, comes_from_device: bool, goes_to_device: bool) -> None:
        if goes_to_device and comes_from_device:
            self.counts.operators[name] += 1
        elif goes_to_device:
            self.counts.uploads[name] += 1
        elif comes_from_device:
            self.counts.synchronising[name] += 1

    def _count_operator(
        self, func: torch._ops.OpOverload, name: str, args: tuple[Any, ...], hosts: list[Tensor]
    ) -> None:
        index = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
        for tensor in hosts:
            is_index = any(tensor is one for one in index)
            if tensor.ndim and not is_index:
                raise RuntimeError(f"{name} over tensors on the device and on the host")
            if is_index:
                self.counts.uploads[f"{name} by a host index"] += 1
        if name in ("_local_scalar_dense", "is_nonzero", "equal"):
            self.counts.synchronising[name] += 1
        elif name in _SHAPE_FROM_VALUES or any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in index):
            self.counts.synchronising[name] += 1
            self.counts.operators[name] += 1
        elif not func.is_view and name not in _ALLOCATE:
            self.counts.operators[name] += 1

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], to_device: bool) -> Any:
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        leaves, spec = tree_flatten((args, kwargs))
        outer = {id(x.inner): x for x in leaves if isinstance(x, DeviceTensor)}
        args, kwargs = tree_unflatten([x.inner if isinstance(x, DeviceTensor) else x for x in leaves], spec)
        if func is _aten._to_copy.default:
            result = args[0].clone() if args[0].dtype == kwargs.get("dtype", args[0].dtype) else func(*args, **kwargs)
        elif func is _aten._flash_attention_forward.default:
            result = _flash_attention(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if not to_device:
            return result
        # What an operator does in place comes back as the very tensor that it was given.

        def wrapped(x: Any) -> Any:
            return outer[id(x)] if id(x) in outer else DeviceTensor(x) if isinstance(x, Tensor) else x

        return tree_map(wrapped, result)


class _FromData(TorchFunctionMode):
    """A tensor made of Python's numbers is made on the host, then uploaded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            del kwargs["device"]
            return func(*args, **kwargs).to(DEVICE)
        return func(*args, **kwargs)


class DeviceTensor(Tensor):
    """A tensor of the device. inner: its values, on the host; views share them as they would there."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        wrapper: DeviceTensor = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on the device by a thread that has not entered a PretendGPU")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner!r})"

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_with_lists_as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_with_lists_as_tensors(index), value)

    def tolist(self) -> Any:
        return self.cpu().tolist()


def _with_lists_as_tensors(index: Any) -> Any:
    """torch makes them tensors where no mode sees it."""
    if isinstance(index, tuple):
        return tuple(map(_with_lists_as_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, edges_q: Tensor, edges_k: Tensor, longest_q: int, longest_k: int,
    dropout: float, causal: bool, return_debug_mask: bool, *, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`aten::_flash_attention_forward` over ragged segments, by the formula."""
    assert q.dtype in (torch.bfloat16, torch.float16), f"flash attention has no {q.dtype}"
    assert edges_q.dtype == edges_k.dtype == torch.int32, "edges are int32"
    assert int(edges_q.diff().max()) <= longest_q and int(edges_k.diff().max()) <= longest_k
    parts = []
    for (q0, q1), (k0, k1) in zip(_pairs(edges_q), _pairs(edges_k), strict=True):
        parts.append(ReferenceBackend().block(q[q0:q1], k[k0:k1], v[k0:k1], causal=causal, scale=scale))
    whole = Partial(*(torch.cat(each) for each in zip(*parts, strict=True)))
    nothing = torch.zeros((), dtype=torch.uint64)
    return whole.out_THK.to(q.dtype), whole.lse_TH.transpose(0, 1), nothing, nothing, torch.zeros(0)


def _pairs(edges: Tensor) -> list[tuple[int, int]]:
    return list(pairwise(edges.tolist()))
