"""Names of other packages that are not public, all of them (ADR 0035): an upgrade says which one is gone."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ROOMS: Final = ("contracts", "degraded_worker", "gateway", "lane_worker", "ops")

CONNECTIONS: Final = "gateway/server/connections.py"
NATS: Final = "ops/nats/client.py"
SENDING: Final = "ops/nats/unbuffered.py"

# file, name → the module in whose source it stands
USED: Final[dict[tuple[str, str], str]] = {
    (CONNECTIONS, "uvicorn._types"): "uvicorn._types",  # the type of an application, which uvicorn exports nowhere
    (CONNECTIONS, "_unset_keepalive_if_required"): "uvicorn.protocols.http.httptools_impl",  # our own time-outs
    (SENDING, "_error_cb"): "nats.aio.client",  # errors of replies that we read ourselves
    (SENDING, "_flush_queue"): "nats.aio.client",  # many messages in one write
    (NATS, "_id"): "nats.aio.subscription",  # which subscription a reply is for
    (NATS, "_max_payload"): "nats.aio.client",
    (NATS, "_process_headers"): "nats.aio.client",
    (SENDING, "_process_op_err"): "nats.aio.client",
    (NATS, "_server_info"): "nats.aio.client",
    (NATS, "_sub"): "nats.js.client",  # of a pull subscription
    (SENDING, "_transport"): "nats.aio.client",
    ("lane_worker/pipelines/allocation.py", "_C"): "torch",
    ("lane_worker/pipelines/allocation.py", "_accelerator_getAllocatorSettings"): "torch._C",
    ("lane_worker/pipelines/allocation.py", "_snapshot"): "torch.cuda.memory",
    ("lane_worker/pipelines/cleanup.py", "_C"): "torch",
    ("lane_worker/pipelines/cleanup.py", "_cuda_clearCublasWorkspaces"): "torch._C",
    ("lane_worker/pipelines/live_bytes.py", "torch.utils._python_dispatch"): "torch.utils._python_dispatch",
    ("lane_worker/pipelines/live_bytes.py", "_C"): "torch",
    ("lane_worker/pipelines/live_bytes.py", "_schema"): "torch._ops",  # which operators change what they are given
    ("lane_worker/pipelines/measure.py", "_keep_in_fp32_modules"): "diffusers.models.modeling_utils",
    ("lane_worker/pipelines/oom_snapshots.py", "_record_memory_history"): "torch.cuda.memory",
    ("lane_worker/pipelines/oom_snapshots.py", "_snapshot"): "torch.cuda.memory",
}
# With an underscore, and public all the same: their documentation names them.
PUBLIC: Final = {"_exit", "_replace", "_fields", "_asdict"}


def _own(tree: ast.AST) -> set[str]:
    """What the module defines itself, as attribute, function or class."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    named = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    return named | {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"self", "cls"}
    }


def _foreign(tree: ast.AST) -> Iterator[str]:
    own = _own(tree) | PUBLIC
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if any(part.startswith("_") and not part.startswith("__") for part in node.module.split(".")):
                yield node.module
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr[:1] == "_" != node.attr[1:2] and node.attr not in own:
            yield node.attr


def used() -> set[tuple[str, str]]:
    files = (file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    return {(str(file.relative_to(ROOT)), name) for file in files for name in _foreign(ast.parse(file.read_text()))}


def test_every_private_name_of_another_package_is_listed() -> None:
    assert used() == set(USED)


@pytest.mark.parametrize(("name", "module"), sorted({(name, module) for (_, name), module in USED.items()}))
def test_it_is_still_there(name: str, module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is gone"
    assert spec.origin is not None
    source = Path(spec.origin)
    if source.suffix == ".so":  # its types are written down beside it
        source = source.parent / module.rpartition(".")[2] / "__init__.pyi"
    assert module == name or name in source.read_text(), f"{module} has no {name} any more"


def test_one_that_is_not_listed_is_found() -> None:
    tree = ast.parse(
        "from uvicorn import _types\nimport nats\nnats.client._send_ping()\nself._own = 1\nself._own.run()"
    )
    assert set(_foreign(tree)) == {"_types", "_send_ping"}
