"""The body of a request: from its bytes to one JSON object, and how large it may be beside its image. Pure."""

import codecs
import json
import re
from typing import Any, Final, Never

from contracts.nesting import NestedTooDeeply, bounded
from contracts.settings import Catalog

# Levels of arrays and objects in a body. A request is flat; where the interpreter would give up depends on its stack.
NESTING_MAX: Final = 16
# What a body may hold beside its image: twice what the packaged settings need, so that a prompt that is far too long is
# still answered with its limit, and more where longer texts are allowed.
BESIDE_IMAGE_BYTES: Final = 128 * 1024
_CHARACTER_BYTES_MAX: Final = 12  # one outside the basic plane, written as two escapes
_OTHER_FIELDS_BYTES: Final = 4 * 1024
# How the text of an image begins, by the names of its field at `POST /generate` and below `/v1/videos`.
_IMAGE_BEGINS: Final = re.compile(rb'"(?:image|image_url|(?:input|image)_reference)"[ \t\r\n]*:[ \t\r\n]*"')


class MalformedBody(ValueError):
    """The body is not one JSON object with distinct keys, in valid UTF-8 (400)."""


def beside_image_max_bytes(catalog: Catalog) -> int:
    """How many bytes a body needs at most for everything but its image."""
    limits = [entry.constraints for entry in catalog.models.values()]
    characters = max((each.prompt.max_chars + each.negative_prompt.max_chars for each in limits), default=0)
    return max(BESIDE_IMAGE_BYTES, _OTHER_FIELDS_BYTES + _CHARACTER_BYTES_MAX * characters)


def beside_image_bytes(body: bytes, *, images: int = 1) -> int:
    """How many bytes of *body* are not the text of its image, or of as many images as *images*. They are counted
    without parsing the body.

    The image's text costs a parser milliseconds a megabyte: it becomes one string, or the parser stops there. A
    megabyte of small objects costs a quarter of a second, and fifty times its size in memory.
    """
    beside, at = len(body), 0
    for _ in range(images):
        begins = _IMAGE_BEGINS.search(body, at)
        if begins is None:
            break
        at = body.find(b'"', begins.end())
        if at < 0:
            return beside - (len(body) - begins.end())
        beside -= at - begins.end()
    return beside


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object in *body*, behind a byte order mark if there is one. Raises MalformedBody on anything that is not
    exactly one, with distinct keys.

    The standard library's parser is used because it shows duplicate keys; its leniencies (NaN, lone surrogates)
    are closed here.
    """
    try:
        text = bounded(body.removeprefix(codecs.BOM_UTF8), deepest=NESTING_MAX).decode()
        parsed = _decode(text)
        if "\\u" in text:
            # a lone surrogate, which only an escape can bring, cannot be encoded; the result itself is not needed
            json.dumps(parsed, ensure_ascii=False).encode()
    except MalformedBody:
        raise
    except NestedTooDeeply as error:
        raise MalformedBody(str(error)) from None
    except UnicodeDecodeError as error:
        raise MalformedBody(f"not valid UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise MalformedBody("a string holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise MalformedBody(f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError:
        raise MalformedBody("a number has too many digits") from None
    if not isinstance(parsed, dict):
        raise MalformedBody("a JSON object is expected")
    return parsed


def form_value(text: str, *, is_text: bool) -> Any:
    """The value of the field of a form that came as *text*. A field that *is_text* is taken as it is. Any other is read
    as JSON, as in `8`; if it is not JSON, its value is the text, whose type a check then refuses."""
    if is_text:
        return text
    try:
        parsed = parse_body(b'{"value":%s}' % text.encode())
    except MalformedBody:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBody("a key appears twice in one object")
    return found


def _refuse_constant(name: str) -> Never:
    raise MalformedBody(f"{name} is not JSON")


_decode: Final = json.JSONDecoder(  # noqa: TID251 - only within the bound
    object_pairs_hook=_distinct, parse_constant=_refuse_constant
).decode
