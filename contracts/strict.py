"""The base of everything that is read from the settings file."""

from msgspec import Struct


class Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A struct that refuses a field that it does not know: a misspelt setting is an error, and not ignored."""
