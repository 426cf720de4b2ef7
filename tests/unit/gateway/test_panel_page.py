"""The files of the panel: what they hold, how large they are, where they come from, and what their pure parts do."""

import gzip
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from contracts.settings import load_settings
from gateway.http.views import settings_view
from tests.kit.tools import tool

ROOT: Final = Path(__file__).parents[3]
STATIC: Final = ROOT / "gateway" / "panel" / "static"
VENDOR: Final = STATIC / "vendor"
SCRIPTS: Final = sorted(path for path in STATIC.rglob("*.js") if path.parent != VENDOR)
# Numbers below this may appear in any program: a minute has 60 s.
COMMON_BELOW: Final = 100
# All script together, as it travels.
MOST_BYTES: Final = 120_000


def test_all_of_the_script_is_small() -> None:
    files = [*SCRIPTS, *VENDOR.glob("*.js")]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < MOST_BYTES


def test_what_comes_from_npm_is_what_sources_says() -> None:
    sources = json.loads((VENDOR / "SOURCES.json").read_text())
    assert sources.keys() == {path.name for path in VENDOR.glob("*.js")}
    for name, source in sources.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == source["sha256"], name
        for licence in source["licences"].values():
            assert (VENDOR / licence.split(", ")[1]).is_file(), licence


def settings() -> list[dict[str, Any]]:
    """What `GET /settings` says of every model, in every profile."""
    found = load_settings()
    views = [settings_view(found.catalog(profile)) for profile in ("tiny", "production")]
    return [model for view in views for model in msgspec.to_builtins(view)["models"]]


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers_in(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def literals(source: str) -> set[float]:
    """The numbers that stand in *source*."""
    return {
        float(text.replace("_", "")) for text in re.findall(r"(?<![\w.#&])\d[\d_]*(?:\.\d+)?(?:e\d+)?(?!\w)", source)
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_model_and_no_limit_stands_in_the_source(path: Path) -> None:
    """The form is made of what the gateway says: another model needs no other page."""
    source = path.read_text()
    for model in settings():
        for name in (model["name"], model["title"], *model["aliases"]):
            assert name.lower() not in source.lower(), name
        limits = {number for number in numbers_in(model["constraints"]) if number >= COMMON_BELOW}
        assert limits
        assert not limits & literals(source)


@pytest.mark.parametrize("name", ["core/form.js", "parts/fields.js", "views/make.js"])
def test_the_form_names_no_field(name: str) -> None:
    source = (STATIC / name).read_text()
    kinds = {"image"}  # of a field, as `fixed` and `number` are
    for model in settings():
        assert not {field for field in model["constraints"] if re.search(rf"[\"'`]{field}[\"'`]", source)} - kinds


def test_literals_are_found_as_they_are_written() -> None:
    assert literals("a = 8_388_608; b1 = [256, 1e3]; c = '2,000 characters'") >= {8388608, 256, 1000}


def test_every_import_is_a_file_of_the_panel() -> None:
    """A browser resolves nothing else: no package by its name, and no other host."""
    imported = re.compile(r"^(?:import|export) [^;]*?from \"([^\"]+)\"", re.MULTILINE)
    for path in SCRIPTS:
        for name in imported.findall(path.read_text()):
            assert name.startswith("."), (path, name)
            assert (path.parent / name).resolve().is_relative_to(STATIC)
            assert (path.parent / name).is_file(), (path, name)


def test_the_page_names_its_files_relatively() -> None:
    """Whatever prefix a proxy puts before them."""
    page = (STATIC / "index.html").read_text()
    named = re.findall(r"(?:href|src)=\"([^\"]+)\"", page)
    assert {name for name in named if not name.startswith("panel/")} == {"docs"}
    assert all((STATIC / name.removeprefix("panel/")).is_file() for name in named if name.startswith("panel/"))
    assert page.count("<head>") == 1  # after which a gateway behind a prefix puts its <base>
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", page)


def test_english_stands_in_one_file() -> None:
    """Between tags there are values and no words: the words are in texts.js."""
    for path in SCRIPTS:
        if path.name != "texts.js":
            between = re.findall(r">\s*([A-Z][a-z]+ [a-z]+[^<>$`{]*)<", path.read_text())
            assert not between, (path, between)


def test_the_pure_parts_of_the_page(tmp_path: Path) -> None:
    """With Node, whose own runner and assertions they use.

    To a browser every file is a module, without a word. Node wants a package.json that says so, and no two of its
    versions have the same option instead.
    """
    node = tool("node")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for folder in (STATIC, Path(__file__).parent / "panel"):
        shutil.copytree(folder, tmp_path / folder.relative_to(ROOT))
    tests = sorted(tmp_path.rglob("*.test.mjs"))
    assert tests
    command: list[str | Path] = [node, "--test", *tests]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
