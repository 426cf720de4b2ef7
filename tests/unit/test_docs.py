"""What the documents name exists: files, tests, commands, options, streams. And what no file here may hold."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import click
import pytest

from contracts.settings import load_settings
from contracts.topology import topology
from ops.cli import COMMANDS, LazyGroup, cli
from tests.kit.openapi import TINY
from tests.promised.__main__ import FILE, read
from tests.promised.surface import surface_of

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
SETTINGS_PAGE: Final = ROOT / "docs" / "operate" / "settings.md"
NATS_PAGE: Final = ROOT / "docs" / "operate" / "nats.md"
REQUIREMENTS: Final = ROOT / "docs" / "requirements.md"
PROTOCOL: Final = ROOT / "docs" / "protocol.md"
DECISIONS: Final = ROOT / "docs" / "adr"
DOCUMENTS: Final = (
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "ops").glob("*.md")),
)
TEXT: Final = "\n".join(path.read_text() for path in DOCUMENTS)
# Paths of the repository in backticks, with or without the name of a test.
_NAMED: Final = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|json|md|toml)|[\w-]+\.(?:md|toml|txt|conf))(?:::(\w+))?`")
_LINK: Final = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# "design §4, Accept 2", "§10.7", "§7, steps 3 and 4", but not "RFC 9110 §14".
_CITED: Final = re.compile(
    r"(RFC \d+ )?§(\d+)(?:\.(\d+)|,? (Accept|Claim|Settle|Deadlines|invariant|steps?)(?: (\d+))?)?"
)
_REQUIREMENTS: Final = [f"FR-{n:03}" for n in range(1, 22)] + [f"SC-{n:03}" for n in range(1, 10)]


def code_lines() -> list[str]:
    """Every line that a reader may type: of the blocks and between backticks."""
    blocks = [line for language, body in _BLOCK.findall(TEXT) if language != "text" for line in body.splitlines()]
    return [*blocks, *re.findall(r"`([^`\n]+)`", _BLOCK.sub("", TEXT))]


def command(name: str) -> click.Command:
    assert isinstance(cli, LazyGroup)
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, f"warmlane has no command {name}"
    return found


@cache
def functions_of(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_test_that_is_named_exists(document: Path) -> None:
    for path, test in _NAMED.findall(document.read_text()):
        assert (ROOT / path).is_file(), f"{document.name} names {path}"
        assert not test or test in functions_of(ROOT / path), f"{document.name} names {path}::{test}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in _LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def cited_text() -> Iterator[tuple[Path, str]]:
    """Every file in which a reader may find a reference."""
    for path in tracked_files():
        if path.suffix in {".py", ".md", ".yaml", ".json", ".conf", ".sh"} or path.name == "Makefile":
            yield path, path.read_text()


def test_every_decision_that_is_named_is_written_and_in_the_index() -> None:
    written = {path.name[:4]: path for path in DECISIONS.glob("[0-9]*.md")}
    for path, text in cited_text():
        assert set(re.findall(r"ADR (\d{4})\b", text)) <= set(written), path
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+) \| ", (DECISIONS / "README.md").read_text(), re.MULTILINE)
    titles = {
        number: path.read_text().splitlines()[0].removeprefix(f"# {number}: ") for number, path in written.items()
    }
    assert [(number, name, title) for number, name, title in rows] == [
        (number, written[number].name, titles[number]) for number in sorted(written)
    ]


@pytest.mark.parametrize("decision", sorted(DECISIONS.glob("[0-9]*.md")), ids=lambda path: path.name[:4])
def test_every_decision_has_the_one_form(decision: Path) -> None:
    """Number and title, then a status, then context, decision and consequences in this order."""
    text = decision.read_text()
    assert re.match(rf"# {decision.name[:4]}: \S.*\n\n(Accepted|Superseded by \[\d{{4}}\])", text), decision.name
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    wanted = ["Context", "Decision", "Consequences"]
    assert [heading for heading in headings if heading in wanted] == wanted, decision.name


@cache
def protocol_sections() -> dict[str, str]:
    """The text below each numbered heading of the protocol, and below each part of such a section by its name."""
    found = {}
    for number, body in re.findall(
        r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", PROTOCOL.read_text(), re.MULTILINE | re.DOTALL
    ):
        found[number] = body
        for name, part in re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", body, re.MULTILINE | re.DOTALL):
            found[f"{number}, {name}"] = part
    return found


def test_every_section_that_is_cited_exists() -> None:
    """`design §4, Accept 2` is the second item below "Accept" in section 4 of docs/protocol.md."""
    sections = protocol_sections()
    for path, text in cited_text():
        for rfc, number, item, part, step in _CITED.findall(text):
            place = {"": "", "invariant": ", Invariants", "step": "", "steps": ""}.get(part, f", {part}")
            wanted = item or step
            if not rfc:
                assert f"{number}{place}" in sections, f"{path.relative_to(ROOT)} cites §{number}{place}"
                assert not wanted or f"\n{wanted}. " in f"\n{sections[number + place]}", (path, number, part, wanted)


def test_the_readme_is_one_page_and_every_document_is_in_the_index() -> None:
    assert len(README.read_text().splitlines()) <= 180
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in _LINK.findall(index.read_text())}
    assert set((ROOT / "docs").rglob("*.md")) - set(DECISIONS.glob("[0-9]*.md")) - {index} <= linked


def test_the_pythons_that_are_supported_are_named_alike() -> None:
    """The package says which; the first page and the one about installing name the same, and that one the systems."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = [each.rpartition(" ")[2] for each in named if each.startswith("Programming Language :: Python :: ")]
    first_page, install = (ROOT / "README.md").read_text(), (ROOT / "docs" / "operate" / "install.md").read_text()
    assert f"Python {', '.join(pythons[:-1])} or {pythons[-1]}" in first_page
    assert re.findall(r"Debian[^|,]*? with Python (3\.\d+)", install) == pythons


def test_every_requirement_that_is_cited_is_written_out() -> None:
    written = re.findall(r"^- \*\*((?:FR|SC)-\d{3})\*\* ", REQUIREMENTS.read_text(), re.MULTILINE)
    assert written == _REQUIREMENTS
    for path, text in cited_text():
        assert set(re.findall(r"\b(?:FR|SC)-\d+", text)) <= set(written), path


def test_every_requirement_has_one_row() -> None:
    """FR and SC → where it is → which test shows it; a row without a test says that something is not built."""
    rows = [line.split(" | ") for line in REQUIREMENTS.read_text().splitlines() if re.match(r"\| (FR|SC)-\d", line)]
    assert [row[0].split()[1] for row in rows] == _REQUIREMENTS
    for row in rows:
        text = " ".join(row)
        assert "not built yet" in text or re.search(r"`tests/[^`]+`|the same", row[2]), text


def test_every_edge_case_of_the_specification_has_one_row_and_a_test_by_name() -> None:
    """Its six, and the three ways in which a lane is unavailable."""
    rows = re.findall(r"^\| ([1-9]|\([a-c]\)) .+ \| (.+) \|$", REQUIREMENTS.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [*"123456", "(a)", "(b)", "(c)"]
    for name, shown in rows:
        named = shown.split(", ")
        assert all(_NAMED.fullmatch(each) and "::test_" in each for each in named), (name, named)


def test_every_command_and_option_that_is_named_exists() -> None:
    named = [match for line in code_lines() for match in re.finditer(r"\bwarmlane ([a-z]+(?:-[a-z]+)*)\b(.*)", line)]
    assert {match[1] for match in named} == set(COMMANDS)
    for match in named:
        known = options_of(command(match[1]))
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", match[2])) <= known, match[0]


def options_of(found: click.Command) -> set[str]:
    """The options of a command, and of those below it."""
    below = found.commands.values() if isinstance(found, click.Group) else ()
    return {option for each in (found, *below) for parameter in each.params for option in names_of(parameter)}


def names_of(parameter: click.Parameter) -> list[str]:
    """Both words of a switch such as --vae-tiling/--no-vae-tiling."""
    return [*parameter.opts, *parameter.secondary_opts]


def test_the_table_of_options_is_that_of_warmlane_up() -> None:
    row = r"^\| `(--[a-z-]+)` \| `(WARMLANE_[A-Z_]+)` \| (.+?) \|"
    shown = re.findall(row, SETTINGS_PAGE.read_text(), re.MULTILINE)
    options = [parameter for parameter in command("up").params if isinstance(parameter, click.Option)]
    assert {option: variable for option, variable, _ in shown} == {
        parameter.opts[0]: parameter.envvar for parameter in options
    }
    defaults = {option: default for option, _, default in shown}
    for parameter in options:
        if parameter.show_default:
            assert defaults[parameter.opts[0]].strip("`") == str(parameter.default), parameter.opts[0]


def test_every_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {match[1] for line in code_lines() if (match := re.match(r"\s*make ([a-z-]+)", line))}
    assert {"run", "test", "lint", "clean", "numbers"} <= named
    assert named <= targets


def test_every_stream_and_bucket_that_is_named_exists() -> None:
    catalog = load_settings().catalog("tiny")
    wanted = topology(tuple(catalog.models), lane_queue_max_msgs=1, keep_s=1)
    streams = {stream.name: {consumer.name for consumer in stream.consumers} for stream in wanted.streams}
    text = NATS_PAGE.read_text()
    for stream in re.findall(r"^nats stream (?:info|subjects) (\S+)", text, re.MULTILINE):
        assert stream in streams
    for stream, consumer in re.findall(r"^nats consumer info (\S+) (\S+)", text, re.MULTILINE):
        assert consumer in streams[stream]
    buckets = {bucket.name for bucket in wanted.buckets}
    named = re.findall(r"^nats kv (?:get|history|ls|watch|put|del) (\S+)", text, re.MULTILINE)
    assert set(named) == {"tasks", "lanes", "control", "leader", "slots", "cold_starts"} <= buckets
    listed = re.findall(r"^\| (?:streams?|buckets?) (.+?) \|", text, re.MULTILINE)
    assert {name for names in listed for name in re.findall(r"`(\w+)`", names)} == {*streams, *buckets}


# ── the repository ───────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def tracked_files() -> tuple[Path, ...]:
    """What is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return tuple(path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())


def test_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in tracked_files() if path.suffix == ".png") <= 300_000


def test_no_file_is_large() -> None:
    assert [path for path in tracked_files() if path.stat().st_size > 1024 * 1024] == []


def test_the_promise_to_clients_is_whole() -> None:
    """Or what came with one release could go with the next. `tests/unit/gateway/test_promised.py` holds the gateway to
    it."""
    lacking = sorted(surface_of(TINY).keys() - read().keys())
    assert lacking == [], f"docs/use/versions.md: `python -m tests.promised` adds them to {FILE.name}"


# In two pieces each, or this file would be the first to be found.
@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", id="left-undone"),
        pytest.param(r"(?<![\w.}\])*])/(?:work|home|root|Users|opt|mnt)/" + r"\w", id="path-of-a-machine"),
        pytest.param(r"py" + r"pi\.org|pytho" + r"nhosted\.", id="package-index-python"),
        pytest.param(r"download\.py" + r"torch|npm" + r"js\.(?:org|com)|/sim" + r"ple/", id="package-index-other"),
        pytest.param("<<<<<" + "<<|>>>>>" + ">>", id="conflict"),
    ],
)
def test_no_file_holds(pattern: str) -> None:
    found = re.compile(pattern)
    for path in tracked_files():
        if path.suffix == ".png":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert found.search(line) is None, f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
