"""Fixtures of hosts and their slots. What imports torch is imported by the fixture that needs it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.kit.fake_nvml import FakeNvml, fake_nvml

if TYPE_CHECKING:
    from tests.kit.yard import Yard


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_yard() -> AsyncIterator["Yard"]:
    """The yard of a module's tests."""
    from tests.kit.yard import open_yard

    async with open_yard() as yard:
        yield yard


@pytest_asyncio.fixture(loop_scope="module")
async def yard(module_yard: "Yard") -> AsyncIterator["Yard"]:
    """`module_yard`; the slots that a test opens in it are closed when the test ends."""
    yield module_yard
    await module_yard.close_slots()


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """A card of 80 GiB whose figures the test sets."""
    with fake_nvml(tmp_path, monkeypatch) as card:
        yield card
