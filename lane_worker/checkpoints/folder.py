"""A prepared folder: its manifest, and whether the files are those that it lists. No torch."""

import hashlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from contracts.nesting import decode_json
from lane_worker.checkpoints.found import CheckpointRefused

MANIFEST: Final = "manifest.json"
PART: Final = ".part"
FORMAT: Final = 2
CHUNK_BYTES: Final = 8 * 1024 * 1024

OnBytes = Callable[[int], None]


class PreparedFile(Struct, frozen=True):
    """A file of a prepared folder, at *path* below it."""

    path: str
    bytes: int
    sha256: str


class SourceFile(Struct, frozen=True):
    """A published file that was read, at *path* below what --from or --base named."""

    path: str
    bytes: int
    sha256: str


class _AnyManifest(Struct, frozen=True):
    format: int


class Manifest(Struct, frozen=True, kw_only=True):
    """What a prepared folder holds; written last, so that a folder with one is whole.

    *tokens*: how the tokenizer encoded some texts when it was prepared; none in folders that are older than this
    field.
    """

    format: int
    model: str
    variant: str
    pipeline: str
    prepared_at: datetime
    sources: tuple[SourceFile, ...]
    files: tuple[PreparedFile, ...]
    tokens: dict[str, tuple[int, ...]] = {}

    @property
    def size_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of *folder*. Raises CheckpointRefused where `warmlane models prepare` did not make the folder, or
    another version did."""
    try:
        text = (folder / MANIFEST).read_bytes()
        found = decode_json(text, _AnyManifest).format
        manifest = None if found != FORMAT else decode_json(text, Manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointRefused(
            f"{folder} has no {MANIFEST}: `warmlane models prepare` did not make it, or did not finish"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointRefused(f"{folder / MANIFEST} cannot be read ({error}); prepare the folder again") from error
    if manifest is None:
        raise CheckpointRefused(
            f"{folder} has format {found}, and this version of Warmlane reads {FORMAT}; prepare the folder again"
        )
    return manifest


def quick_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong by name and size: missing, extra and truncated files. Reads no content."""
    listed = {file.path: file for file in manifest.files}
    for path, file in listed.items():
        try:
            size_bytes = (folder / path).stat().st_size
        except OSError as error:
            yield f"{path} is missing" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
            continue
        if size_bytes != file.bytes:
            yield f"{path} has {size_bytes:,} bytes instead of {file.bytes:,}"
    present = {str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if not path.is_dir()}
    yield from (f"{path} is not in the manifest" for path in sorted(present - {*listed, MANIFEST}))


def content_faults(folder: Path, manifest: Manifest, on_bytes: OnBytes) -> Iterator[str]:
    """The files whose SHA-256 differs from the manifest's. Reads everything; *on_bytes* is called for each piece."""
    for file in manifest.files:
        try:
            if sha256_of(folder / file.path, on_bytes) != file.sha256:
                yield f"{file.path} is not what was written (its SHA-256 differs)"
        except FileNotFoundError:
            continue  # quick_faults reports it
        except OSError as error:
            yield f"{file.path} cannot be read: {error.strerror}"


def sha256_of(path: Path, on_bytes: OnBytes = lambda _: None) -> str:
    """The SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()
