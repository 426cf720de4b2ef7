"""Whether Triton can build the kernels of an attention backend."""

import sys
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace

from contracts.checkpoints import AttentionBackend
from lane_worker.residence.fit import PACKAGES
from lane_worker.residence.kernels import BACKENDS, BuildPlace, cannot_build

GOOD = BuildPlace(compiler="/usr/bin/gcc", headers=True, cache=Path("/cache"), may_write=True, may_execute=True)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        pytest.param(replace(GOOD, compiler=None), "no C compiler", id="1"),
        pytest.param(replace(GOOD, headers=False), "headers of Python", id="2"),
        pytest.param(replace(GOOD, may_write=False), "nothing may be written in /cache", id="3-read-only"),
        pytest.param(replace(GOOD, may_execute=False), "nothing may be executed in /cache", id="3-noexec"),
    ],
)
def test_what_is_missing_is_named(place: BuildPlace, reason: str) -> None:
    assert reason in (cannot_build(place) or "")


def test_nothing_is_missing() -> None:
    assert cannot_build(GOOD) is None


def test_the_place_is_found_as_triton_finds_it(tmp_path: Path) -> None:
    place = BuildPlace.of({"CC": sys.executable, "TRITON_HOME": str(tmp_path)})
    assert (place.compiler, place.cache) == (sys.executable, tmp_path / ".triton" / "cache")
    assert (place.may_write, place.may_execute) == (True, True)
    place = BuildPlace.of({"PATH": "", "TRITON_CACHE_DIR": str(tmp_path / "elsewhere")})
    assert (place.compiler, place.cache) == (None, tmp_path / "elsewhere")


def test_every_backend_of_sageattention_is_one() -> None:
    known = {backend for backend in get_args(AttentionBackend) if PACKAGES.get(backend) == "sageattention"}
    assert known == BACKENDS
