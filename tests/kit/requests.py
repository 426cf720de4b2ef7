"""Bodies of `POST /generate`, checked as the gateway checks them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from contracts.generation.body import (
    parse_body,
)
from contracts.generation.errors import FieldError, InvalidRequest
from contracts.generation.request import AcceptedRequest, validate
from contracts.settings import Catalog
from tests.kit.samples import catalog, data_uri, picture

PROFILES = ("tiny", "production")
MODELS = ("anisora", "phr00t")
PNG = data_uri(picture("PNG"))
# a number of frames at which any width and height are allowed
SMALL_FRAMES = 17


def submit(body: Any, running: Catalog | None = None) -> AcceptedRequest:
    """Parses a request from bytes, as the gateway does."""
    return validate(parse_body("".join(json_text(body)).encode()), running or catalog())


def json_text(body: Any) -> Iterator[str]:
    """JSON for *body*. Python writes an infinity in a form that no parser reads; in JSON 1e999 is one."""
    for piece in json.JSONEncoder().iterencode(body):
        # a piece that is a string ends with its quote
        yield piece.replace("Infinity", "1e999") if piece.endswith("Infinity") else piece


def errors_of(body: Any, running: Catalog | None = None) -> list[FieldError]:
    with pytest.raises(InvalidRequest) as refusal:
        submit(body, running)
    return refusal.value.errors


def pointers(errors: list[FieldError]) -> list[str]:
    return [error.pointer for error in errors]
