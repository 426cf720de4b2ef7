"""Counts the bytes of live tensors while code runs on the meta device, where tensors have shapes and no memory.

It counts what the code itself holds: each storage from the call that makes it until the last tensor on it is gone. It
does not count what a backend takes beside that: workspaces, rounding, and the backend's own cache.
"""

import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from msgspec import Struct
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """While it is active, *live_bytes* and *peak_bytes* count the storages that operators return, except those of
    *free_of_charge*, the weights."""

    def __init__(self, *free_of_charge: torch.nn.Module) -> None:
        super().__init__()
        self.live_bytes: int = 0
        self.peak_bytes: int = 0
        self._operators = _Operators()
        # by identity: torch keeps one object for each storage as long as the storage lives
        self._known: dict[int, torch.UntypedStorage | weakref.ref[torch.UntypedStorage]] = {}
        for module in free_of_charge:
            for tensor in (*module.parameters(), *module.buffers()):
                storage = tensor.untyped_storage()
                self._known[id(storage)] = storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = self._operators.call(func, args, kwargs or {})
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known:
            return
        held = storage.nbytes()
        self.live_bytes += held
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._known[key] = weakref.ref(storage, partial(self._drop, key, held))

    def _drop(self, key: int, held: int, _: object) -> None:
        del self._known[key]
        self.live_bytes -= held


class _Operators:
    """Calls operators, and works out once for each set of shapes what one makes of meta tensors: torch does that in
    Python, which takes most of the time of a count."""

    def __init__(self) -> None:
        self._results: dict[Any, torch.Tensor | None] = {}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What *func* returns, or a new tensor like the one that it returned for the same shapes."""
        try:
            key = (func, _shapes(args), _shapes(tuple(kwargs.items()))) if _makes_anew(func) else None
            known = None if key is None else self._results.get(key)
        except (TypeError, NotImplementedError):  # what has no hash, or is no meta tensor
            key = known = None
        if known is not None:
            return torch.empty_strided(known.shape, known.stride(), dtype=known.dtype, device="meta")
        made = func(*args, **kwargs)
        if key is not None and key not in self._results:
            self._results[key] = _twin(made, args)
        return made


@cache
def _makes_anew(func: Any) -> bool:
    """Whether *func* changes none of its arguments, and returns no view of one."""
    schema = func._schema
    return all(each.alias_info is None for each in (*schema.arguments, *schema.returns))


def _shapes(value: Any) -> Any:
    """What an operator can know of *value*, where tensors have no contents. Raises NotImplementedError on others."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise NotImplementedError
        return value.shape, value.stride(), value.dtype
    return tuple(map(_shapes, value)) if isinstance(value, tuple | list) else (type(value), value)


def _twin(made: Any, args: tuple[Any, ...]) -> torch.Tensor | None:
    """A tensor with the form of *made* and a storage of the same size. None where *made* is no simple tensor, or has
    its storage from one of *args*."""
    if type(made) is not torch.Tensor or not made.is_meta:
        return None
    storages = (each.untyped_storage() for each in args if isinstance(each, torch.Tensor))
    if any(each is made.untyped_storage() for each in storages):
        return None
    twin = torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device="meta")
    return twin if twin.untyped_storage().nbytes() == made.untyped_storage().nbytes() else None


class FusedAttention(TorchFunctionMode):
    """Has `scaled_dot_product_attention` return a result and nothing else, as the fused kernels of a card do.

    On meta tensors torch takes the path that writes out the matrix of all scores, which no card would.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, value = named["query"], named["value"]
        if value.shape[-1] != query.shape[-1]:
            raise NotImplementedError("values of another width than the queries'")
        return torch.empty_like(query)  # also its strides, as the kernels return it


class _Made(Struct):
    """A tensor that a call left behind: its form, and a number that identifies its storage."""

    storage: int
    elements: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


class _Seen(Struct):
    peak_bytes: int
    result: _Made
    cache: list[Any]
    position: int


class RepeatedCoder:
    """The forward of a Wan encoder or decoder, run once per set of shapes: it does the same for each tile and frame.

    A call whose input and cached tensors have the shapes of an earlier call is not run. It leaves behind what the
    earlier call left behind, and counts the same peak. `tests/e2e/test_measure.py` compares it with calls that run.
    """

    def __init__(self, forward: Callable[..., Any], count: LiveBytes) -> None:
        self._forward = forward
        self._count = count
        self._seen: dict[Any, _Seen] = {}

    def __call__(self, x: torch.Tensor, feat_cache: list[Any], feat_idx: list[int], **options: Any) -> torch.Tensor:
        with torch._C.DisableTorchFunction():  # else each question for a shape goes through the modes above
            key = (tuple(x.shape), tuple(options.items()), tuple(map(_form, feat_cache)))
            seen = self._seen.get(key)
            if seen is not None:
                return self._repeat(seen, feat_cache, feat_idx)
        self._seen[key], result = self._run(x, feat_cache, feat_idx, options)
        return result

    def _repeat(self, seen: _Seen, feat_cache: list[Any], feat_idx: list[int]) -> torch.Tensor:
        count = self._count
        count.peak_bytes = max(count.peak_bytes, count.live_bytes + seen.peak_bytes)
        feat_idx[0] = seen.position
        storages: dict[int, torch.Tensor] = {}
        for index, left in enumerate(seen.cache):
            if _form(feat_cache[index]) != _form(left):
                feat_cache[index] = _make(left, storages) if isinstance(left, _Made) else left
        return _make(seen.result, storages)

    def _run(
        self, x: torch.Tensor, feat_cache: list[Any], feat_idx: list[int], options: dict[str, Any]
    ) -> tuple[_Seen, torch.Tensor]:
        count = self._count
        before, count.peak_bytes = count.peak_bytes, count.live_bytes
        at_first = count.live_bytes
        result = self._forward(x, feat_cache=feat_cache, feat_idx=feat_idx, **options)
        peak_bytes = count.peak_bytes - at_first
        count.peak_bytes = max(before, count.peak_bytes)
        cache = [_made(each) if isinstance(each, torch.Tensor) else each for each in feat_cache]
        return _Seen(peak_bytes, _made(result), cache, feat_idx[0]), result


def _form(cached: Any) -> Any:
    """What a call knows of one cached thing."""
    if isinstance(cached, torch.Tensor):
        cached = _made(cached)
    return (cached.elements, cached.shape, cached.stride, cached.dtype) if isinstance(cached, _Made) else cached


def _made(tensor: torch.Tensor) -> _Made:
    storage = tensor.untyped_storage()
    elements = storage.nbytes() // tensor.element_size()
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    return _Made(id(storage), elements, shape, stride, tensor.storage_offset(), tensor.dtype)


def _make(made: _Made, storages: dict[int, torch.Tensor]) -> torch.Tensor:
    base = storages.get(made.storage)
    if base is None:
        base = storages[made.storage] = torch.empty(made.elements, dtype=made.dtype, device="meta")
    return base.as_strided(made.shape, made.stride, made.offset)
