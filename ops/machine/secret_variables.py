"""Secrets in the environment: a variable NAME, or a file that NAME_FILE names, as container engines and systemd do."""

from collections.abc import Mapping
from pathlib import Path

import click


def file_variable(name: str) -> str:
    """The variable that names the file of the secret *name*."""
    return f"{name}_FILE"


def secret_in(environ: Mapping[str, str], name: str) -> str | None:
    """The secret *name* of *environ*, without line breaks at its end; None where neither variable is set.

    Raises click.ClickException where both are set, and for a file that cannot be read or is empty. The error does not
    repeat the file's content.
    """
    text, file = environ.get(name), environ.get(file_variable(name))
    if text and file:
        raise click.ClickException(f"{name} and {file_variable(name)} are both set; keep one of them")
    if not file:
        return text or None
    try:
        content = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise click.ClickException(f"{file_variable(name)}: {file} cannot be read: {why}") from error
    if not content:
        raise click.ClickException(f"{file_variable(name)}: {file} is empty; write the secret into it")
    return content
