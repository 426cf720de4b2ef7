"""Which NVIDIA driver the installed torch needs. Torch itself is not imported: that takes seconds."""

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SOURCE: Final = "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"
# Table 1 of that page: for the major version of CUDA that a program was built with, the oldest driver it runs on.
OLDEST: Final[Mapping[int, int]] = {11: 450, 12: 525, 13: 580}


def cuda_of_torch() -> str | None:
    """The CUDA version that torch was built with, such as `13.0`; None for a build without CUDA, or where there is no
    torch. Read from the package's `version.py`.
    """
    spec = importlib.util.find_spec("torch")
    folders = () if spec is None else spec.submodule_search_locations or ()
    for folder in folders:
        try:
            return cuda_in(Path(folder, "version.py").read_text())
        except (OSError, SyntaxError, ValueError):  # a build that we do not know: the doctor must not fail at it
            continue
    return None


def cuda_in(version_file: str) -> str | None:
    """What the text of a `version.py` assigns to `cuda`; None where that is None, or nothing. Raises SyntaxError."""
    for line in ast.parse(version_file).body:
        if isinstance(line, ast.AnnAssign | ast.Assign):
            target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
            if isinstance(target, ast.Name) and target.id == "cuda" and isinstance(line.value, ast.Constant):
                return None if line.value.value is None else str(line.value.value)
    return None


def oldest_driver(cuda: str) -> int | None:
    """The oldest major version of the driver for a program that was built with *cuda*; None where we do not know it."""
    major = cuda.partition(".")[0]
    return OLDEST.get(int(major)) if major.isdecimal() else None
