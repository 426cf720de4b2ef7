"""Makes the folder that was planned: reads the published files, writes shards and small files, renames.

A work folder `NAME.part` beside the target keeps every finished shard with its SHA-256, so that a later run resumes one
that was cut off. The rename to the target is the last act. Memory holds one shard at a time.

The published files are read twice: once through for their SHA-256, which says what the folder was made from, and once
by tensors, since the shards need them in another order.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import msgspec

from lane_worker.checkpoints.folder import FORMAT, MANIFEST, PART, Manifest, PreparedFile, SourceFile, sha256_of
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.checkpoints.plan import index_of, model_index, weights_stem
from lane_worker.pipelines.preparing.planning import Plan
from lane_worker.pipelines.preparing.shards import write_shard
from lane_worker.pipelines.preparing.work_folder import (
    LOCK,
    STATE,
    FolderState,
    PublishedFile,
    Stamp,
    begun_from_others,
    free_bytes_at,
    held,
    remove_strays,
    stamp_of,
    sync_folder,
    write,
)


class OnProgress(Protocol):
    """Called with the bytes that are done, the bytes in all, and the file that is read or written."""

    def __call__(self, done_bytes: int, total_bytes: int, file: str) -> None: ...


def prepare(
    planned: Plan,
    target: Path,
    *,
    now: datetime,
    on_progress: OnProgress,
    sha256: str | None = None,
    restart: bool = False,
    free_bytes: Callable[[Path], int] = free_bytes_at,
) -> Manifest:
    """Writes *planned* to *target*, which appears when all of it is written.

    The published files are first read through for their SHA-256. *sha256* is what the one file of --from must have;
    another file is refused then. A work folder of the same files is resumed; *restart* throws away whatever there is.
    Progress is in bytes of published files read through, and of shards written. Raises CheckpointRefused, and OSError,
    after which a second run resumes this one.
    """
    if target.exists():
        raise CheckpointRefused(f"{target} exists, and is not a prepared folder; name another, or move it away")
    part = target.with_name(target.name + PART)
    with held(part, planned, restart=restart, free_bytes=free_bytes) as state:
        state = _identified(planned, part, state, on_progress, sha256)
        files = _small_files(planned, part)
        files += _shards(planned, part, state, on_progress)
        _require_unchanged(planned, state)
        manifest = Manifest(
            format=FORMAT,
            model=planned.layout.model,
            variant=planned.layout.variant,
            pipeline=planned.layout.pipeline,
            prepared_at=now,
            sources=tuple(
                SourceFile(each.name, each.stamp.bytes, each.sha256)
                for each in sorted(state.sources, key=lambda each: each.name)
            ),
            files=tuple(sorted(files, key=lambda file: file.path)),
            tokens=planned.tokenizer.tokens,
        )
        write(part / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        remove_strays(part, manifest)
        (part / STATE).unlink()
        (part / LOCK).unlink()
        os.rename(part, target)
        sync_folder(target.parent)
    return manifest


def _identified(
    planned: Plan, part: Path, state: FolderState, on_progress: OnProgress, sha256: str | None
) -> FolderState:
    """*state* with the SHA-256 of every published file. A file that an earlier run has read, and that has not been
    written to since, is not read again."""
    total_bytes = planned.source_bytes + planned.size_bytes
    done_bytes = 0
    for name, path in planned.sources.items():
        known = next((each for each in state.sources if each.name == name), None)
        stamp = stamp_of(path)
        if known is None or known.stamp != stamp:
            found = PublishedFile(name, stamp, _read_through(path, done_bytes, total_bytes, on_progress))
            _require_unchanged_file(path, stamp)
            if known is not None and known.sha256 != found.sha256:
                raise begun_from_others(part, state)
        else:
            found = known
        if sha256 is not None and planned.is_given(name) and found.sha256 != sha256:
            raise CheckpointRefused(
                f"{path} has the SHA-256 {found.sha256} and not {sha256}: it is not the file that was meant; "
                "download that one"
            )
        if found != known:
            others = tuple(each for each in state.sources if each.name != name)
            state = msgspec.structs.replace(state, sources=(*others, found))
            write(part / STATE, msgspec.json.encode(state))
        done_bytes += stamp.bytes
        on_progress(done_bytes, total_bytes, name)
    return state


def _read_through(path: Path, done_bytes: int, total_bytes: int, on_progress: OnProgress) -> str:
    def on_bytes(read_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += read_bytes
        on_progress(done_bytes, total_bytes, f"SHA-256 of {path.name}")

    return sha256_of(path, on_bytes)


def _require_unchanged(planned: Plan, state: FolderState) -> None:
    for each in state.sources:
        _require_unchanged_file(planned.sources[each.name], each.stamp)


def _require_unchanged_file(path: Path, stamp: Stamp) -> None:
    if stamp_of(path) != stamp:
        raise CheckpointRefused(f"{path} was written to while it was read; run this again when it is complete")


def _small_files(planned: Plan, part: Path) -> list[PreparedFile]:
    """Everything but the weights; written anew in each run."""
    layout, files = planned.layout, {}
    for component, shards in zip(layout.components, planned.shards, strict=True):
        files[f"{component.name}/config.json"] = _json(component.config)
        if len(shards) > 1:
            files[f"{component.name}/{weights_stem(component)}.safetensors.index.json"] = index_of(shards)
    files["scheduler/scheduler_config.json"] = _json(layout.scheduler)
    files["model_index.json"] = model_index(
        layout, tokenizer=planned.tokenizer.kind, diffusers_version=metadata.version("diffusers")
    )
    files.update({f"tokenizer/{name}": content for name, content in planned.tokenizer.files.items()})
    for path, content in files.items():
        (part / path).parent.mkdir(parents=True, exist_ok=True)
        write(part / path, content)
    return [PreparedFile(path, len(text), hashlib.sha256(text).hexdigest()) for path, text in files.items()]


def _shards(planned: Plan, part: Path, state: FolderState, on_progress: OnProgress) -> list[PreparedFile]:
    kept = {file.path: file for file in state.files}
    finished: list[PreparedFile] = []
    done_bytes = planned.source_bytes
    total_bytes = done_bytes + planned.size_bytes
    for shards in planned.shards:
        for shard in shards:
            on_progress(done_bytes, total_bytes, shard.path)
            file = kept.get(shard.path)
            if file is None or not _is_whole(part, file):
                file = write_shard(part, shard)
            finished.append(file)
            state = msgspec.structs.replace(
                state, files=tuple({**kept, **{each.path: each for each in finished}}.values())
            )
            write(part / STATE, msgspec.json.encode(state))
            done_bytes += shard.size_bytes
            on_progress(done_bytes, total_bytes, shard.path)
    return finished


def _is_whole(part: Path, file: PreparedFile) -> bool:
    path = part / file.path
    return path.is_file() and path.stat().st_size == file.bytes and sha256_of(path) == file.sha256


def _json(content: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content))
