"""TLS from PEM files: the certificate that the gateway shows, and the authority that a client trusts. TLS 1.2 or
later."""

import ssl
from pathlib import Path

import click


class Tls:
    """A certificate and its key, read once, so that what is wrong with them is reported before anything is started."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises click.ClickException, which says what is wrong with which file."""
        self.cert, self.key = cert.absolute(), key.absolute()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        _require(cert, "--tls-cert", "CERTIFICATE-----")
        _require(key, "--tls-key", "PRIVATE KEY-----")

        def no_passphrase() -> str:
            # without this, OpenSSL would ask on the terminal
            raise click.ClickException(
                f"--tls-key {key} has a passphrase, and nobody is there to type it; "
                f"`openssl pkey -in {key} -out FILE` writes one without"
            )

        try:
            self.context.load_cert_chain(cert, key, no_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise click.ClickException(
                    f"--tls-key {key} is not the key of the certificate in --tls-cert {cert}; "
                    "the certificate itself has to come first in its file"
                ) from error
            raise click.ClickException(f"--tls-cert {cert} with --tls-key {key}: {_reason(error)}") from error

    def arguments(self) -> list[str]:
        """The same, for the command line of another process."""
        return ["--tls-cert", str(self.cert), "--tls-key", str(self.key)]


def tls_of(cert: Path | None, key: Path | None) -> Tls | None:
    """What `--tls-cert` and `--tls-key` ask for: both or neither.

    Raises click.UsageError for one without the other, click.ClickException for files that cannot be used.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        lacking = "--tls-cert" if cert is None else "--tls-key"
        raise click.UsageError(f"{lacking} is missing: TLS needs a certificate and its key")
    return Tls(cert, key)


def trusting(ca: Path) -> ssl.SSLContext:
    """The context of a client that trusts only the authority, or the one certificate, in *ca*.

    Raises click.ClickException when the file cannot be used.
    """
    _require(ca, "--ca", "CERTIFICATE-----")
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise click.ClickException(f"--ca {ca}: {_reason(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _require(path: Path, option: str, marker: str) -> None:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise click.ClickException(f"{option} {path} cannot be read: {error.strerror}") from error
    if marker not in text:
        what = "certificate" if marker.startswith("CERT") else "private key"
        raise click.ClickException(f"{option} {path} holds no {what} in PEM, which begins with -----BEGIN")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
