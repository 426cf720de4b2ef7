"""Where artifacts are: a folder, or a bucket of S3, as `--artifacts` names it.

Endpoint, region and credentials of a bucket are not part of its name: obstore takes them from the variables `AWS_*`, or
from the machine (a role of the instance, the container or the pod).
"""

import asyncio
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog
from msgspec import Struct
from obstore.exceptions import BaseError
from obstore.store import S3Store

from contracts.hosts import names_loopback
from ops.artifacts import Artifacts, ConditionsIgnored, StorageFailed

SCHEME: Final = "s3://"
# obstore retries a connection that is not made within the first time, and a request that is not over within the second.
# After the third it no longer retries. A part of a large video is a request of its own (`ops/artifacts.py`).
CONNECT_S: Final = 3.0
REQUEST_S: Final = 30.0
RETRIES_S: Final = 15.0
RETRIES: Final = 5
# The limit for what a client of the gateway waits for: the size of an object, a chunk of it, its removal.
ANSWER_S: Final = 10.0
# How long a process that starts waits for the store before it gives up, and is started again.
PROVE_S: Final = 20.0
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# The variables that open the store. Processes that have no business there are started without them.
SECRETS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_TOKEN",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
_BUCKET: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{1,61})[a-z0-9]", re.ASCII)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*", re.ASCII)

log = structlog.get_logger("artifacts")


class FolderPlace(Struct, frozen=True):
    """A folder, of this machine or of a file server."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)


class BucketPlace(Struct, frozen=True):
    """The objects of an S3 bucket below *prefix*; all of them where it is empty. They belong to one deployment."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


ArtifactPlace = FolderPlace | BucketPlace


def place_of(text: str) -> ArtifactPlace:
    """The place that *text* names: `s3://bucket/prefix`, or the path of a folder. Raises ValueError, which says what to
    write instead."""
    if "://" not in text:
        if not text.strip():
            raise ValueError("it is empty; name a folder, or s3://BUCKET/PREFIX")
        return FolderPlace(Path(text).absolute())
    if not text.startswith(SCHEME):
        raise ValueError(f"{text!r} is not a place for artifacts; name a folder, or s3://BUCKET/PREFIX")
    bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"{bucket!r} is not the name of a bucket: 3 to 63 lower-case letters, digits, dots and dashes. An endpoint "
            "and keys belong in the variables AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    prefix = prefix.rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"{prefix!r} is not a valid prefix: letters, digits and -_.= between slashes, as in videos/production"
        )
    return BucketPlace(bucket, prefix)


async def open_artifacts(place: ArtifactPlace, *, writes_videos: bool = False) -> Artifacts:
    """The store at *place*. A bucket is proven first (`Artifacts.prove`), within PROVE_S. So is the folder of a process
    that *writes_videos*: it may be a volume that was mounted read-only, or belongs to another user. A gateway's folder
    is not: a gateway can serve what is there even from a full disk.

    Raises StorageFailed, which says what to do.
    """
    if isinstance(place, FolderPlace):
        artifacts = Artifacts.in_folder(place.folder)
        if not writes_videos:
            return artifacts
        advice = f"It has to be writable for user {os.getuid()} and to have room, on every machine with a worker"
    else:
        artifacts, advice = in_bucket(place), _advice(os.environ)
    try:
        async with asyncio.timeout(PROVE_S):
            await artifacts.prove()
    except ConditionsIgnored as error:
        raise ConditionsIgnored(f"cannot use {artifacts.name}: {error} (docs/operate/s3.md)") from error
    except StorageFailed as error:
        raise StorageFailed(f"cannot use {artifacts.name}: {error}. {advice}") from error
    except TimeoutError as error:
        what = f"it did not answer within {PROVE_S:g} s"
        raise StorageFailed(f"cannot use {artifacts.name}: {what}. {advice}") from error
    return artifacts


def in_bucket(place: BucketPlace) -> Artifacts:
    """The store at *place*, which is not contacted yet. Raises StorageFailed for variables that make no sense."""
    endpoint = endpoint_of(os.environ)
    insecure = endpoint is not None and endpoint.startswith("http://")
    if insecure and not names_loopback(urlsplit(str(endpoint)).netloc):
        log.warning("store_without_tls", endpoint=endpoint, risk="videos and images can be read in transit")
    try:
        store = S3Store(
            place.bucket,
            prefix=place.prefix or None,
            # not every store can delete many objects at once
            config={"disable_bulk_delete": True},
            # an operator who writes http:// into the endpoint means it
            client_options={
                "connect_timeout": timedelta(seconds=CONNECT_S),
                "timeout": timedelta(seconds=REQUEST_S),
                **({"allow_http": True} if insecure else {}),
            },
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=RETRIES_S),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
        )
    except (BaseError, ValueError) as error:
        raise StorageFailed(f"cannot use {place}: {error}") from error
    name = str(place) if endpoint is None else f"{place} at {endpoint}"
    return Artifacts(store, name, answers_within_s=ANSWER_S)


def endpoint_of(environ: Mapping[str, str]) -> str | None:
    """The endpoint that *environ* names, in obstore's order; None for that of AWS. Pure."""
    return next((environ[name] for name in _ENDPOINTS if environ.get(name)), None)


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """*environ* without the variables that open the store: for processes that have no business there. Pure."""
    return {name: value for name, value in environ.items() if name not in SECRETS}


def _advice(environ: Mapping[str, str]) -> str:
    if not any(environ.get(name) for name in ("AWS_ACCESS_KEY_ID", *SECRETS[-2:])):
        return "No AWS_ACCESS_KEY_ID is set, so the instance was asked for credentials (docs/operate/s3.md)"
    if endpoint_of(environ) is None:
        return "No AWS_ENDPOINT_URL is set, so AWS itself was asked (docs/operate/s3.md)"
    return "Bucket, endpoint, keys and what they allow: docs/operate/s3.md"
