"""The packaged settings, changed in one place."""

import json
from importlib import resources
from typing import Any

import pytest

from contracts.settings import SettingsError, parse_settings

PACKAGED = resources.files("contracts").joinpath("inference_settings.json").read_bytes()
REMOVE = object()


def changed(path: str, value: Any) -> bytes:
    """The packaged settings with *value* at *path* (names between slashes), or without what is there."""
    document = json.loads(PACKAGED)
    *parents, last = path.split("/")
    place = document
    for name in parents:
        place = place[name]
    if value is REMOVE:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document).encode()


def refusal(text: bytes) -> str:
    with pytest.raises(SettingsError) as error:
        parse_settings(text)
    return str(error.value)


TINY = "models/phr00t/profiles/tiny"
CHECKPOINT = "$.models.phr00t.profiles.tiny.checkpoint"
