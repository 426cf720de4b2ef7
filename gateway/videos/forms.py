"""The parts of a form as the fields of a JSON body. Pure.

The client of OpenAI writes a nested field as `webhook[url]`, and a list as `webhook[events][]`, once for each entry.
"""

import re
from typing import Any, Final

from contracts.generation.body import MalformedBody
from contracts.generation.errors import shown
from contracts.generation.form import no_text
from contracts.generation.images import ImageFile
from gateway.videos.fields import IMAGES

_INTEGERS: Final = frozenset({"width", "height", "num_frames", "fps", "seed", "num_inference_steps", "keep_s"})
_NUMBERS: Final = frozenset({"guidance_scale"})
_INTEGER: Final = re.compile(r"-?[0-9]{1,30}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?")
_NAME: Final = re.compile(r"([^\[\]]+)(\[([^\[\]]+)\])?(\[\])?")


class VideoFormFields:
    """The fields of `POST /v1/videos`: a FormTarget."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    @staticmethod
    def is_image(name: str) -> bool:
        return name in IMAGES

    @staticmethod
    def is_image_text(name: str) -> bool:
        return name.partition("[")[0] in IMAGES

    def add_image(self, name: str, content: bytes, _: str) -> None:
        """The part with a file. An empty one means that no file was chosen in the form. Its declared type does not
        count: the client of OpenAI declares none for raw bytes. Raises MalformedBody for a second one."""
        if content:
            self._put(self.values, name, ImageFile(content), name)

    def add_text(self, part: str, content: bytes) -> None:
        """A part without a file. If its field takes numbers it becomes a number, or stays text if it is none. Raises
        MalformedBody for a part that is not UTF-8, whose name cannot be read, or that comes twice."""
        found = _NAME.fullmatch(part)
        if found is None:
            raise MalformedBody(f"a part of the form has the name {shown(part)!a}, which is none of a field")
        name, _, key, is_list = found.groups()
        value = _value(name if key is None else "", part, content)
        if value is None:
            return
        into = self.values
        if key is not None:
            into = into.setdefault(name, {})
            if not isinstance(into, dict):
                raise _twice(part)
            name = key
        if not is_list:
            self._put(into, name, value, part)
            return
        entries = into.setdefault(name, [])
        if not isinstance(entries, list):
            raise _twice(part)
        entries.append(value)

    def _put(self, into: dict[str, Any], name: str, value: Any, part: str) -> None:
        if name in into:
            raise _twice(part)
        into[name] = value


def _value(name: str, part: str, content: bytes) -> Any:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise no_text(part, error, file=IMAGES[0]) from None
    if name not in _INTEGERS and name not in _NUMBERS:
        return text
    if not text:
        return None  # a field of a form that was left empty
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if name in _NUMBERS and _NUMBER.fullmatch(text) else text


def _twice(name: str) -> MalformedBody:
    return MalformedBody(f"the part {shown(name)!a} appears twice in the form")
