"""The fields of a form (`multipart/form-data`) as those of a JSON body. Pure."""

from typing import Any, Final, Protocol, get_args, get_type_hints

from msgspec import UnsetType

from contracts.generation.body import MalformedBody, form_value
from contracts.generation.images import ImageFile
from contracts.generation.request import GenerationRequest

IMAGE_FIELD: Final = "image"
# A form of more parts is refused: a request has fewer fields.
PARTS_MAX: Final = 64


def _text_fields() -> frozenset[str]:
    kinds = {name: set(get_args(hint) or (hint,)) for name, hint in get_type_hints(GenerationRequest).items()}
    return frozenset(name for name, kind in kinds.items() if kind - {UnsetType} == {str})


TEXT_FIELDS: Final = _text_fields()
"""Fields that are text whatever stands in them: a prompt of `8` is a prompt."""


class FormTarget(Protocol):
    """Takes in the parts of a form as they end, and keeps what a JSON body of the same fields would hold."""

    values: dict[str, Any]

    @staticmethod
    def is_image(name: str) -> bool:
        """Whether the part *name* is the image of the request, if it is a file."""
        ...

    @staticmethod
    def is_image_text(name: str) -> bool:
        """Whether the part *name*, which is no file, may be as long as the text of an image."""
        ...

    def add_text(self, name: str, content: bytes) -> None:
        """A part without a file. Raises MalformedBody."""
        ...

    def add_image(self, name: str, content: bytes, declared: str) -> None:
        """The file of the image, which was declared as *declared*. Raises MalformedBody."""
        ...


class FormFields:
    """The fields of `POST /generate`: a FormTarget."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    @staticmethod
    def is_image(name: str) -> bool:
        return name == IMAGE_FIELD

    @staticmethod
    def is_image_text(_: str) -> bool:
        return False

    def add_text(self, name: str, content: bytes) -> None:
        """A part without a file. Raises MalformedBody for one that is no UTF-8, or comes twice."""
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise no_text(name, error, file=IMAGE_FIELD) from None
        self._add(name, form_value(text, is_text=name in TEXT_FIELDS))

    def add_image(self, name: str, content: bytes, declared: str) -> None:
        """The part with the file `image`. An empty one means that no file was chosen in the form. Raises MalformedBody
        for a second one."""
        if content:
            self._add(name, ImageFile(content, declared))

    def _add(self, name: str, value: Any) -> None:
        if name in self.values:
            raise MalformedBody(f"the field {_named(name)} appears twice in the form")
        self.values[name] = value


def no_text(name: str, error: UnicodeDecodeError, *, file: str) -> MalformedBody:
    """The error of the field *name*, which takes text and holds something else: perhaps a file, which belongs in the
    field *file*."""
    return MalformedBody(
        f"the field {_named(name)} is not valid UTF-8 at byte {error.start}; a file is sent in the field {file!r}"
    )


def _named(name: str) -> str:
    return repr(name[:64])
