"""Whether Triton can build kernels here, as some attention backends have it do at their first use.

Triton compiles a helper in C against Python's headers, keeps the result in a cache folder, and loads it from there. The
containers of `compose.yaml` have no compiler, and may not execute what lies in `/tmp`.
"""

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final, get_args

from msgspec import Struct

from contracts.checkpoints import AttentionBackend

# SageAttention quantises with kernels of Triton, whichever of its functions computes
# (https://github.com/thu-ml/SageAttention/blob/0116592f6eace985216ac3e97b40ecc200aaf101/sageattention/core.py).
BACKENDS: Final[frozenset[AttentionBackend]] = frozenset(
    name for name in get_args(AttentionBackend) if name.startswith(("sage", "_sage"))
)


class BuildPlace(Struct, frozen=True):
    """What Triton finds: the C *compiler*, None without one; whether Python's *headers* are there; and its *cache*
    folder, whether that may be written, and whether what lies in it may be executed."""

    compiler: str | None
    headers: bool
    cache: Path
    may_write: bool
    may_execute: bool

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "BuildPlace":
        """Looks under *environment* as `triton.runtime.build` and `triton.knobs` do."""
        path = environment.get("PATH")
        compiler = environment.get("CC") or shutil.which("gcc", path=path) or shutil.which("clang", path=path)
        home = environment.get("TRITON_HOME") or environment.get("HOME") or os.path.expanduser("~")
        cache = Path(environment.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache"))
        there = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.is_dir())
        return cls(
            compiler=compiler and shutil.which(compiler, path=path),
            headers=Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
            cache=cache,
            may_write=os.access(there, os.W_OK),
            may_execute=not os.statvfs(there).f_flag & os.ST_NOEXEC,
        )


def cannot_build(place: BuildPlace) -> str | None:
    """Why Triton cannot build there, and what to do; None where it can. Pure.

    1. There is no C compiler.
    2. There are no headers of Python.
    3. The cache folder cannot be written, or nothing in it can be executed.
    """
    if place.compiler is None:  # 1
        return "there is no C compiler: install gcc, or name one in CC"
    if not place.headers:  # 2
        return "the headers of Python are missing: install them (Debian: python3-dev)"
    if not (place.may_write and place.may_execute):  # 3
        what = "executed" if place.may_write else "written"
        return f"nothing may be {what} in {place.cache}: set TRITON_CACHE_DIR to a folder that allows it (no noexec)"
    return None
