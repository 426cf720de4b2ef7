"""The signing secrets of webhooks at rest: encrypted with a key that nats-server and its backups never hold."""

import contextlib
import os
import secrets
from base64 import b64encode
from pathlib import Path
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

KEY_VARIABLE: Final = "WARMLANE_WEBHOOKS_KEY"
KEY_FILE: Final = "webhooks.key"
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - how every secret of Standard Webhooks begins
SECRET_BYTES: Final = 32


class BadSealingKey(Exception):
    """The key that seals secrets cannot be used. The text says what to do, and does not repeat the key."""


class CannotUnseal(Exception):
    """The secret was sealed with another key, or for another endpoint."""


class Sealer:
    """Seals and opens secrets. Its repr holds no key."""

    def __init__(self, keys: str) -> None:
        """*keys*, separated by blanks or commas, in the form of `Fernet.generate_key`: the first one seals, any of them
        opens.

        Raises BadSealingKey.
        """
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys.replace(",", " ").split()])
        except ValueError as error:
            raise BadSealingKey(
                f"{KEY_VARIABLE}, or the file {KEY_FILE}, must hold keys of 32 bytes in URL-safe base64; "
                "`openssl rand -base64 32 | tr +/ -_` makes one"
            ) from error

    def seal(self, endpoint: str, secret: str) -> str:
        """*secret* of *endpoint*, encrypted."""
        return self._fernet.encrypt(f"{endpoint} {secret}".encode()).decode()

    def open(self, endpoint: str, sealed: str) -> str:
        """The secret of *endpoint* in *sealed*. Raises CannotUnseal."""
        try:
            whose, _, secret = self._fernet.decrypt(sealed.encode()).decode().partition(" ")
        except InvalidToken:
            raise CannotUnseal(f"the secret of {endpoint} was sealed with another key") from None
        if whose != endpoint:
            raise CannotUnseal(f"the secret of {endpoint} was made for another endpoint")
        return secret


def new_secret() -> str:
    """A new signing secret, as Standard Webhooks writes it."""
    return SECRET_PREFIX + b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sealing_keys(data_dir: Path, given: str | None) -> str:
    """*given* if it is set, else the content of the key file in *data_dir*, which is made if it is missing.

    Gateways that share the folder share the key, even if they start at once. Raises BadSealingKey.
    """
    if given:
        return given
    file = data_dir / KEY_FILE
    try:
        if not file.exists():
            _make(file)
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSealingKey(f"{file} cannot be read or made ({error}); set {KEY_VARIABLE}, or mend it") from error


def _make(file: Path) -> None:
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
        new.write(Fernet.generate_key() + b"\n")
        new.flush()
        os.fsync(new.fileno())
    try:
        # the file appears whole, and never replaces one that another gateway has just made
        with contextlib.suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink()
