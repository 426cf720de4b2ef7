"""The artifact store of the simulated system."""

from collections.abc import Callable
from typing import Any

from ops.artifacts import StorageFailed
from tests.model.network import Network, StoreAway


class ModelArtifacts:
    """The artifact store. Each call is an effect that can fail, or take place and then fail."""

    def __init__(self, network: Network, files: dict[str, bytes]) -> None:
        self._network, self._files = network, files

    async def _call(self, what: str, path: str, effect: Callable[[], Any]) -> Any:
        try:
            return await self._network.call(f"{what} {path}", effect, lane=f"store {path}")
        except StoreAway as error:
            raise StorageFailed(str(error)) from error

    async def put(self, path: str, content: Any) -> None:
        data = content if isinstance(content, bytes) else content.content
        await self._call("put", path, lambda: self._files.__setitem__(path, data))

    async def get(self, path: str) -> bytes | None:
        content: bytes | None = await self._call("get", path, lambda: self._files.get(path))
        return content

    async def size(self, path: str) -> int | None:
        size: int | None = await self._call(
            "size", path, lambda: len(self._files[path]) if path in self._files else None
        )
        return size

    async def delete(self, path: str) -> None:
        await self._call("delete", path, lambda: self._files.pop(path, None))


class _Scratch:
    """A file of a worker, and a folder of them."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content

    @property
    def folder(self) -> "_Scratch":
        return self

    def ensure(self) -> None:
        pass

    def exists(self) -> bool:
        return True

    def __truediv__(self, _: str) -> "_Scratch":
        return _Scratch()

    def write_bytes(self, content: bytes) -> None:
        self.content = content

    def unlink(self, missing_ok: bool = False) -> None:
        pass
