"""What the wheel of the client holds, and that it works where nothing of the server is."""

import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "clients" / "python"
SOURCE: Final = FOLDER / "src"
PROJECT: Final = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
# Of the server, and what only the server needs.
FOREIGN: Final = ("contracts", "degraded_worker", "gateway", "lane_worker", "ops", "nats", "torch", "click", "litestar")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert built.returncode == 0, f"{built.stdout}{built.stderr}"
    (path,) = folder.glob("*.whl")
    return path


def needed(name: str) -> set[str]:
    """Distribution *name*, and all that it needs here."""
    found, new = set[str](), {name}
    while new:
        found |= new
        wanted = [Requirement(text) for each in new for text in distribution(each).requires or ()]
        new = {each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})} - found
    return found


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if path.suffix in {".py", ".typed"}}
    assert names == here
    assert {name.partition("/")[0] for name in names} == {"warmlane_client"}
    assert "warmlane_client/py.typed" in names


def test_it_needs_httpx_and_msgspec(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    wanted = map(Requirement, message_from_bytes(archive.read(name)).get_all("Requires-Dist") or [])
    assert {each.name for each in wanted} == {"httpx", "msgspec"}


def test_the_server_needs_the_client_of_its_own_version() -> None:
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert PROJECT["version"] == server["version"]
    assert f"warmlane-client=={PROJECT['version']}" in server["dependencies"]
    assert PROJECT["requires-python"] == server["requires-python"]


def test_it_is_installed_without_an_index_and_works_where_nothing_else_is(wheel: Path, tmp_path: Path) -> None:
    """Its own dependencies are linked from here, since the test has no index."""
    target, needs = tmp_path / "target", tmp_path / "needs"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--find-links", wheel.parent, "--target", target, "warmlane-client"], check=True)
    needs.mkdir()
    for each in needed("httpx") | needed("msgspec"):
        for file in distribution(each).files or ():
            top = Path(file).parts[0]
            if top not in ("..", "__pycache__") and not (needs / top).exists():
                (needs / top).symlink_to(str(distribution(each).locate_file(top)))
    program = f"""
import sys
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [{str(target)!r}, {str(needs)!r}]
import warmlane_client
assert warmlane_client.__file__.startswith({str(target)!r}), warmlane_client.__file__
try:
    warmlane_client.Client("http://127.0.0.1:1", patience=warmlane_client.Patience(lost_attempts=1)).task("x")
except warmlane_client.GatewayUnreachable as error:
    print(error)
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & set({FOREIGN!r})), "<")
"""
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    first, foreign = ran.stdout.splitlines()
    assert first.startswith("no gateway answers at http://127.0.0.1:1: ")
    assert foreign == "<" or foreign == " <"
