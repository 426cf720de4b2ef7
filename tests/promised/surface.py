"""What clients may rely on, read from an OpenAPI document, and which of these promises a later document breaks. Pure.

A surface is a flat table: each line names one thing and says what it is. A promise is kept as long as its line stays.
Of the operators' part, below `/admin`, the table has only the names.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

Surface = dict[str, str]

_SCHEMAS: Final = "#/components/schemas/"
_OPERATORS: Final = "/admin/"
_REQUIRED: Final = ", required"


def surface_of(document: dict[str, Any]) -> Surface:
    """What *document* promises: names of operations, their parameters, answers and bodies, the keys of each schema with
    their types, the values of each enumeration, and the codes of errors."""
    found: Surface = {}
    used: dict[str, None] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            name = operation["operationId"]
            found[f"operation {name}"] = f"{method.upper()} {path}"
            if not path.startswith(_OPERATORS):
                found.update(_asked(document, name, operation))
                found.update(_answered(name, operation))
                used.update(dict.fromkeys(_schemas_in(operation["responses"])))
    for name in _reached(document, used):
        found.update(_keys(name, document["components"]["schemas"][name]))
    for code, example in document["components"]["examples"].items():
        found[f"problem {code}"] = str(example["value"]["status"])
    return found


def broken(promised: Surface, found: Surface) -> list[str]:
    """The promises of *promised* that *found* breaks, and what *found* newly demands of clients.

    1. A line is gone, or has changed. A change that lets clients send more than before is allowed.
    2. A new line demands that clients send something, in an operation that existed before. Within a form of the body
       that is new as well, that is allowed.
    """
    gone = [
        f"{line}: {said}, now {found.get(line, 'gone')}"
        for line, said in promised.items()
        if found.get(line) != said and not _takes_more(line, said, found.get(line, ""))
    ]
    bodies = {_form_of(line) for line in promised}
    demands = [
        f"{line}: {said}, which clients do not send"
        for line, said in found.items()
        if line not in promised
        and said.endswith(_REQUIRED)
        and f"operation {line.split()[1]}" in promised
        and (not line.startswith("body ") or _form_of(line) in bodies)
    ]
    return gone + demands


def _takes_more(line: str, before: str, now: str) -> bool:
    """Whether clients may still send at *line* all that they could send *before*, or more."""
    is_sent = line.startswith(("body ", "parameter "))
    demands = now.endswith(_REQUIRED) and not before.endswith(_REQUIRED)
    kinds, more = (set(said.removesuffix(_REQUIRED).split(" or ")) for said in (before, now))
    return is_sent and not demands and kinds <= more


def _form_of(line: str) -> str:
    """The operation and the form of its body that *line* is about."""
    return " ".join(line.split()[:3])


def _asked(document: dict[str, Any], name: str, operation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for given in operation.get("parameters", []):
        each = _resolved(document, given)
        yield f"parameter {name} {each['in']} {each['name']}", _said(type_of(each["schema"]), each.get("required"))
    body = _resolved(document, operation.get("requestBody", {}))
    for media_type, content in body.get("content", {}).items():
        schema = content["schema"]
        for given in schema.get("oneOf", schema.get("anyOf", [schema])):
            variant = _resolved(document, given)
            title = variant.get("title", media_type)
            required = variant.get("required", [])
            for key, value in variant.get("properties", {}).items():
                yield f"body {name} {title} {key}", _said(type_of(value), key in required)


def _answered(name: str, operation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for status, answer in operation["responses"].items():
        if int(status) >= 400:
            continue  # a problem document, whose code is a promise of its own
        content = answer.get("content", {})
        yield f"answer {name} {status}", ", ".join(content) or "empty"
        for media_type, described in content.items():
            if "schema" in described:
                yield f"answer {name} {status} {media_type}", type_of(described["schema"])
        for header in answer.get("headers", {}):
            yield f"header {name} {status} {header}", "may be sent"


def _keys(name: str, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    required = schema.get("required", [])
    for key, value in schema.get("properties", {}).items():
        yield f"key {name} {key}", f"{type_of(value)}, {'always there' if key in required else 'may be absent'}"
    for value in schema.get("enum", []):
        yield f"value {name} {value}", "may come"


def _schemas_in(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str) and node["$ref"].startswith(_SCHEMAS):
            yield node["$ref"].removeprefix(_SCHEMAS)
        for key, child in node.items():
            if key != "examples":
                yield from _schemas_in(child)
    elif isinstance(node, list):
        for child in node:
            yield from _schemas_in(child)


def _reached(document: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The schemas of *names*, and those that they refer to."""
    found: dict[str, None] = {}
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found[name] = None
            left += _schemas_in(document["components"]["schemas"][name])
    return list(found)


def type_of(schema: dict[str, Any]) -> str:
    """The type of a value of *schema*, in words, without limits, default, or the values of an enumeration."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(_SCHEMAS)
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            return " or ".join(sorted({type_of(each) for each in schema[choice]}))
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(sorted(kind))
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _said(kind: str, is_required: object) -> str:
    return f"{kind}, required" if is_required else kind


def _resolved(document: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in given:
        return given
    node: Any = document
    for part in given["$ref"].removeprefix("#/").split("/"):
        node = node[part]
    assert isinstance(node, dict)
    return node
