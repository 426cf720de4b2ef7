"""A test waits for an answer over HTTP as long as a busy machine needs: httpx by itself gives up after 5 s."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]
ASKS: Final = {"AsyncClient", "Client", "get", "post", "put", "delete", "head", "options", "request", "stream"}


def unbounded(tree: ast.AST) -> Iterator[int]:
    """The lines that call httpx and leave how long to wait to it. A transport in this process needs no bound."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ASKS:
            is_httpx = isinstance(call.func.value, ast.Name) and call.func.value.id == "httpx"
            if is_httpx and not {"timeout", "transport"} & {each.arg for each in call.keywords}:
                yield call.lineno


def test_each_call_of_httpx_says_how_long_to_wait() -> None:
    found = {
        f"{path.relative_to(TESTS)}:{line}"
        for path in TESTS.rglob("*.py")
        for line in unbounded(ast.parse(path.read_bytes()))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("httpx.get(url)", [1]),
        ("async with httpx.AsyncClient(base_url=url) as http: ...", [1]),
        ("httpx.get(url, timeout=60)", []),
        ("httpx.Client(transport=mock)", []),
        ("client.get(url)", []),
    ],
)
def test_it_finds_those_that_do_not(text: str, lines: list[int]) -> None:
    assert [line - 1 for line in unbounded(ast.parse(f"async def ask():\n    {text}"))] == lines
