"""Import rules that import-linter cannot express: who may use what from outside."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("contracts", "gateway", "lane_worker", "ops")
CLIENT = "clients/python/src/warmlane_client"


def imported(path: Path) -> Iterator[str]:
    """The top-level names that the module at *path* imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path} imports relatively"
            yield node.module.partition(".")[0]


def test_contracts_use_the_standard_library_and_msgspec_only() -> None:
    allowed = {*sys.stdlib_module_names, "msgspec", "contracts"}
    found = {name for path in (ROOT / "contracts").rglob("*.py") for name in imported(path)}
    assert found - allowed == set()


def test_only_one_file_talks_to_nvml() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if "pynvml" in imported(path)
    }
    assert found == {"ops/machine/nvml.py"}


def test_a_class_has_a_name_of_its_own() -> None:
    """A search for a class finds one."""
    places: dict[str, list[str]] = {}
    for room in (*ROOMS, "degraded_worker", CLIENT):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(), str(path))):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
