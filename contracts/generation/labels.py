"""Labels of a request: a few short pairs, by which its caller finds its tasks again. Pure.

They stand in the record, in answers, events and webhooks, but not in metrics, because a caller can make any number of
them.
"""

import re
from typing import Any, Final

from msgspec import UNSET

from contracts.generation.errors import FieldError, refused, shown, wrong_type

LABELS_MAX: Final = 8
KEY_PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
VALUE_PATTERN: Final = "[A-Za-z0-9._:/@-]{1,63}"
_KEY: Final = re.compile(KEY_PATTERN, re.ASCII)
_VALUE: Final = re.compile(VALUE_PATTERN, re.ASCII)
_KEY_IN_WORDS: Final = "keys of 1 to 63 letters, digits and ._-, beginning with a letter or a digit"
_VALUE_IN_WORDS: Final = "string of 1 to 63 letters, digits and ._:/@-"

Label = tuple[str, str]
"""A key and its value."""


class BadLabel(ValueError):
    """The text is no label. It says what is expected."""


def parse_label(text: str) -> Label:
    """The label in *text*, `key:value`: the key ends at the first colon. Raises BadLabel."""
    key, colon, value = text.partition(":")
    if not colon or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
        raise BadLabel(f"expected KEY:VALUE, with {_KEY_IN_WORDS}, and a {_VALUE_IN_WORDS}")
    return key, value


def labels_of(name: str, value: Any, errors: list[FieldError]) -> dict[str, str]:
    """The labels at the field *name*, by key; what is wrong with them is added to *errors*."""
    if value is UNSET:
        return {}
    if not isinstance(value, dict):
        errors.append(wrong_type(name, '{"key": "value", …}', value))
        return {}
    if len(value) > LABELS_MAX:
        errors.append(refused(name, "too_many", f"at most {LABELS_MAX} labels", f"{len(value)} labels"))
        return {}
    for key, each in sorted(value.items()):
        if not _KEY.fullmatch(key):
            errors.append(refused(name, "bad_label", _KEY_IN_WORDS, shown(key)))
        elif not isinstance(each, str):
            errors.append(wrong_type(f"{name}/{key}", "string", each))
        elif not _VALUE.fullmatch(each):
            errors.append(refused(f"{name}/{key}", "bad_label", _VALUE_IN_WORDS, shown(each)))
    return dict(sorted(value.items()))
