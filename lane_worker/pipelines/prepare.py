"""From published files to a diffusers folder: reads tensors, writes shards. `lane_worker.checkpoints` decides.

Beside the target a work folder `NAME.part` keeps every finished shard with its SHA-256, so that a run that was cut off
is taken up where it was; the rename to the target is the last act. Memory holds one shard at a time.

The published files are read twice: once through for their SHA-256, which says what the folder was made from, and once
by tensors, which lie in another order than the shards want them.
"""

import contextlib
import hashlib
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

import diffusers
import msgspec
import safetensors.torch
import torch
import transformers
from filelock import FileLock, Timeout
from msgspec import Struct
from safetensors import SafetensorError, safe_open

from contracts.nesting import decode_json
from lane_worker.checkpoints.folder import (
    FORMAT,
    MANIFEST,
    PART,
    Manifest,
    PreparedFile,
    SourceFile,
    content_faults,
    quick_faults,
    read_manifest,
    sha256_of,
)
from lane_worker.checkpoints.found import (
    CheckpointRefused,
    Shape,
    Tensor,
    read_safetensors,
    read_sharded,
    some,
)
from lane_worker.checkpoints.layouts import TOKENIZER_FOLDER, Component, Layout
from lane_worker.checkpoints.plan import (
    SHARD_BYTES,
    Shard,
    index_of,
    is_finer,
    matched,
    model_index,
    shards_of,
    split_all_in_one,
    weights_stem,
)
from lane_worker.pipelines.tokens import PreparedTokenizer, load_faults, prepared_tokenizer

STATE: Final = "progress.json"
LOCK: Final = "lock"
DTYPES: Final = {"BF16": torch.bfloat16, "F32": torch.float32}
NAMES: Final = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
# Configurations, the tokenizer, indexes and the manifest: 20 MB and something to spare.
SMALL_FILES_BYTES: Final = 64_000_000
# torch's old format cannot be mapped; the published files that may have it are smaller.
LEGACY_BYTES: Final = 2_000_000_000
# How safetensors reports a failure of the disk.
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


class OnProgress(Protocol):
    """Told what is done, of how much, and with which file."""

    def __call__(self, done_bytes: int, total_bytes: int, file: str) -> None: ...


class _Stamp(Struct, frozen=True):
    """A file that has the same stamp was not written to in between."""

    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int


class _Source(Struct, frozen=True):
    """A published file whose SHA-256 is known, and when that was so."""

    name: str
    stamp: _Stamp
    sha256: str


class _Finished(Struct, frozen=True):
    """The state of a work folder: from what and how it is made, and which files are finished."""

    source: str
    way: str
    sources: tuple[_Source, ...] = ()
    files: tuple[PreparedFile, ...] = ()


class Plan(Struct, frozen=True):
    """Everything that will be written, before anything is."""

    layout: Layout
    source: Path
    sources: dict[str, Path]
    shards: tuple[tuple[Shard, ...], ...]
    tokenizer: PreparedTokenizer

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shards in self.shards for shard in shards)

    @property
    def source_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.sources.values())

    def is_given(self, name: str) -> bool:
        """Whether the published file *name* is of --from, and not of --base."""
        return self.sources[name].is_relative_to(self.source)

    def way(self) -> str:
        """Tells one way of making shards of published files from another. Knows their names and tensors, not values."""
        names = {str(path): name for name, path in self.sources.items()}
        shards = [
            (
                shard.path,
                [
                    (
                        move.parameter,
                        move.dtype,
                        names[move.tensor.file],
                        move.tensor.name,
                        move.scale and move.scale.name,
                    )
                    for move in shard.moves
                ],
            )
            for shards in self.shards
            for shard in shards
        ]
        told = msgspec.json.encode((self.layout.model, self.layout.variant, shards))
        return hashlib.sha256(told).hexdigest()


def parameters_of(component: Component) -> dict[str, Shape]:
    """The parameters of the real class with this configuration, and their shapes. Takes no memory for them."""
    with torch.device("meta"):
        if component.library == "diffusers":
            model = getattr(diffusers, component.kind).from_config(component.config)
        else:
            config = transformers.AutoConfig.for_model(**component.config)
            model = getattr(transformers, component.kind)(config)
    # under its second name a tied parameter is not stored
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


# ── planning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def plan(
    layout: Layout,
    source: Path,
    *,
    base: Path | None = None,
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Plan:
    """What `prepare` will write. Reads the headers of the published files only, and writes nothing.

    *base* is the folder of the base model, for what *source* does not hold. Raises CheckpointRefused.
    """
    for given, option in ((source, "--from"), (base, "--base")):
        if given is not None and not given.exists():
            raise CheckpointRefused(f"{given} is not there; give {option} what was downloaded")
    root = source if layout.form == "all-in-one" else _root(layout, source)
    found = _all_in_one(layout, source, base) if layout.form == "all-in-one" else _files(layout, root, base)
    shards = tuple(
        shards_of(
            component, matched(layout, component, tensors, parameters_of(component), where), limit_bytes=shard_bytes
        )
        for component, tensors, where in found
    )
    files = sorted({move.tensor.file for each in shards for shard in each for move in shard.moves})
    sources = {_name_of(Path(file), source, base): Path(file) for file in files}
    folder = _tokenizer_folder([root if root.is_dir() else root.parent, *([base] if base else [])], tokenizer)
    return Plan(layout, source, sources, shards, _tokenizer(layout, folder))


def _name_of(file: Path, source: Path, base: Path | None) -> str:
    folders = [source if source.is_dir() else source.parent, *([] if base is None else [base])]
    return str(next(file.relative_to(folder) for folder in folders if file.is_relative_to(folder)))


def _all_in_one(layout: Layout, source: Path, base: Path | None) -> list[tuple[Component, Mapping[str, Tensor], str]]:
    file = source
    if source.is_dir():
        # each version has a folder of its own
        files = sorted(source.glob("*.safetensors")) or sorted(source.glob("*/*.safetensors"))
        if len(files) != 1:
            raise CheckpointRefused(
                f"{source} holds {len(files)} safetensors files; give --from the one file of {layout.title}"
            )
        file = files[0]
    places = {} if base is None else {each.name: (each, base / each.source) for each in layout.lent}
    lent = {name: (each, path) for name, (each, path) in places.items() if path.exists()}
    parts = split_all_in_one(layout, read_safetensors(file), str(file), lent=lent)
    found: list[tuple[Component, Mapping[str, Tensor], str]] = []
    for component in layout.components:
        chosen: tuple[Component, Mapping[str, Tensor], str] = (component, parts[component.name], str(file))
        if component.name in lent:
            lender, path = lent[component.name]
            tensors = _headers_of_torch(path)
            chosen = (lender, tensors, str(path)) if is_finer(tensors, parts[component.name]) else chosen
        found.append(chosen)
    return found


def _files(layout: Layout, root: Path, base: Path | None) -> list[tuple[Component, Mapping[str, Tensor], str]]:
    found_places = [(each.source, _place(each, root, base)) for each in layout.components]
    places = {name: place for name, place in found_places if place is not None}
    absent = [name for name, place in found_places if place is None]
    if absent:
        shared = {each.source for each in layout.components if each.shared}
        rest = "give --base the folder of Wan2.2-I2V-A14B, as the Wan authors publish it" if shared & {*absent} else ""
        more = " and ".join(filter(None, ["download the rest" if {*absent} - shared else "", rest]))
        raise CheckpointRefused(f"{root} lacks {', '.join(absent)} of {layout.title}; {more}")
    found: list[tuple[Component, Mapping[str, Tensor], str]] = []
    for component in layout.components:
        path = places[component.source]
        tensors = _headers_of_torch(path) if path.suffix == ".pth" else read_sharded(path)
        found.append((component, tensors, str(path)))
    return found


def _root(layout: Layout, source: Path) -> Path:
    """*source*, or the one folder in it that holds the transformer: a whole download has one for each version."""
    if not source.is_dir():
        raise CheckpointRefused(f"{source} is a file; give --from the folder that holds all of {layout.title}")
    name = layout.transformer.source
    inside = [] if (source / name).exists() else [path.parent for path in sorted(source.glob(f"*/{name}"))]
    if len(inside) > 1:
        raise CheckpointRefused(
            f"{source} holds {', '.join(path.name for path in inside)}; give --from the one of {layout.title}"
        )
    return inside[0] if inside else source


def _place(component: Component, root: Path, base: Path | None) -> Path | None:
    folders = [root, base] if component.shared and base is not None else [root]
    return next((folder / component.source for folder in folders if (folder / component.source).exists()), None)


def _headers_of_torch(path: Path) -> dict[str, Tensor]:
    # a type that cannot be written goes by torch's name of it, and is refused by that
    return {
        name: Tensor(name, NAMES.get(value.dtype, str(value.dtype)), tuple(value.shape), str(path))
        for name, value in _read_torch(path).items()
    }


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch's, mapped and not read. Runs no code of the file's."""
    mapped = zipfile.is_zipfile(path)
    if not mapped and path.stat().st_size > LEGACY_BYTES:
        raise CheckpointRefused(f"{path} is truncated, or in torch's format of before 1.6; download it again")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointRefused(
            f"{path} is truncated, or holds more than tensors ({_first_line(error)}); compare its size with the "
            "published one, and download it again"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise CheckpointRefused(f"{path} is no plain set of named tensors; take the published file")
    return values


def _tokenizer_folder(around: list[Path], given: Path | None) -> Path:
    folders = [folder / TOKENIZER_FOLDER for folder in around] if given is None else [given]
    for folder in folders:
        if (folder / "tokenizer_config.json").is_file() and any(
            (folder / name).is_file() for name in ("tokenizer.json", "spiece.model")
        ):
            return folder
    raise CheckpointRefused(
        f"{' or '.join(map(str, folders))} holds no tokenizer (tokenizer_config.json, and tokenizer.json or "
        f"spiece.model); give --tokenizer the folder {TOKENIZER_FOLDER} that the Wan authors publish with their models"
    )


def _tokenizer(layout: Layout, folder: Path) -> PreparedTokenizer:
    vocabulary = next(each.config["vocab_size"] for each in layout.components if each.name == "text_encoder")
    try:
        tokenizer = prepared_tokenizer(folder)
    except Exception as error:  # of many kinds, by what is wrong with the files
        raise CheckpointRefused(
            f"{folder} holds a tokenizer that does not load ({_first_line(error)}); download {TOKENIZER_FOLDER} again"
        ) from error
    if tokenizer.size > vocabulary:
        raise CheckpointRefused(
            f"{folder} has {tokenizer.size} tokens and the text encoder {vocabulary}: it belongs to another model; "
            f"give --tokenizer {TOKENIZER_FOLDER}"
        )
    if tokenizer.faults:
        raise CheckpointRefused(
            f"{folder} is not the tokenizer of UMT5: {tokenizer.faults[0]}; give --tokenizer {TOKENIZER_FOLDER}"
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def free_bytes_at(folder: Path) -> int:
    """The free space of the disk that *folder* is or will be on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


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

    The published files are first read through for their SHA-256; with *sha256*, which is of the only one of --from,
    another is refused then. A work folder of the same files is taken up; *restart* throws away whatever there is.
    Progress is in bytes of published files read through, and of shards written. Raises CheckpointRefused, and OSError,
    after which a second run goes on.
    """
    if target.exists():
        raise CheckpointRefused(f"{target} exists, and is no prepared folder; name another, or move it away")
    part = target.with_name(target.name + PART)
    with _held(part, planned, restart=restart, free_bytes=free_bytes) as state:
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
        _write(part / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        _remove_strays(part, manifest)
        (part / STATE).unlink()
        (part / LOCK).unlink()
        os.rename(part, target)
        _sync_folder(target.parent)
    return manifest


@contextlib.contextmanager
def _held(part: Path, planned: Plan, *, restart: bool, free_bytes: Callable[[Path], int]) -> Iterator[_Finished]:
    """The work folder, held against a second process, and its state. Nothing is made where it is refused."""
    if part.exists():
        with _locked(part, planned, restart=restart, free_bytes=free_bytes) as state:
            yield state
        return
    _require_space(part, planned.size_bytes + SMALL_FILES_BYTES, free_bytes)
    part.mkdir(parents=True, exist_ok=True)
    with _locked(part, planned, restart=restart, free_bytes=free_bytes) as state:
        try:
            yield state
        except CheckpointRefused:
            shutil.rmtree(part)  # while it is held: one that another process holds is that process's
            raise


@contextlib.contextmanager
def _locked(part: Path, planned: Plan, *, restart: bool, free_bytes: Callable[[Path], int]) -> Iterator[_Finished]:
    try:
        held = FileLock(part / LOCK, fallback_to_soft=False).acquire(blocking=False)
    except Timeout as error:
        raise CheckpointRefused(f"another process is writing {part}; wait for it") from error
    with held:
        state, way = None if restart else _read_state(part), planned.way()
        if state is not None and state.way != way:
            raise _begun_from_others(part, state)
        if state is None:
            state = _Finished(str(planned.source), way)
            _write(part / STATE, msgspec.json.encode(state))
        finished_bytes = sum(file.bytes for file in state.files)
        _require_space(part, planned.size_bytes - finished_bytes + SMALL_FILES_BYTES, free_bytes)
        yield state


def _begun_from_others(part: Path, state: _Finished) -> CheckpointRefused:
    return CheckpointRefused(
        f"{part} was begun from other files ({state.source}) or by another version of Warmlane; give the same --from, "
        "or --restart to begin anew"
    )


def _identified(planned: Plan, part: Path, state: _Finished, on_progress: OnProgress, sha256: str | None) -> _Finished:
    """*state* with the SHA-256 of every published file. One that a run before has read, and that nobody wrote to since,
    is not read again."""
    total_bytes = planned.source_bytes + planned.size_bytes
    done_bytes = 0
    for name, path in planned.sources.items():
        known = next((each for each in state.sources if each.name == name), None)
        stamp = _stamp(path)
        if known is None or known.stamp != stamp:
            found = _Source(name, stamp, _read_through(path, done_bytes, total_bytes, on_progress))
            _require_unchanged_file(path, stamp)
            if known is not None and known.sha256 != found.sha256:
                raise _begun_from_others(part, state)
        else:
            found = known
        if sha256 is not None and planned.is_given(name) and found.sha256 != sha256:
            raise CheckpointRefused(
                f"{path} has the SHA-256 {found.sha256} and not {sha256}: it is another file than the one that was "
                "meant; download that one"
            )
        if found != known:
            others = tuple(each for each in state.sources if each.name != name)
            state = msgspec.structs.replace(state, sources=(*others, found))
            _write(part / STATE, msgspec.json.encode(state))
        done_bytes += stamp.bytes
        on_progress(done_bytes, total_bytes, name)
    return state


def _read_through(path: Path, done_bytes: int, total_bytes: int, on_progress: OnProgress) -> str:
    def on_bytes(read_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += read_bytes
        on_progress(done_bytes, total_bytes, f"SHA-256 of {path.name}")

    return sha256_of(path, on_bytes)


def _require_unchanged(planned: Plan, state: _Finished) -> None:
    for each in state.sources:
        _require_unchanged_file(planned.sources[each.name], each.stamp)


def _require_unchanged_file(path: Path, stamp: _Stamp) -> None:
    if _stamp(path) != stamp:
        raise CheckpointRefused(f"{path} was written to while it was read; run this again when it is complete")


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return _Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _require_space(part: Path, needed_bytes: int, free_bytes: Callable[[Path], int]) -> None:
    free = free_bytes(part)
    if free < needed_bytes:
        raise CheckpointRefused(
            f"{part.parent} has {free / 1e9:,.1f} GB free and {needed_bytes / 1e9:,.1f} GB are needed; make room, or "
            "name another --to"
        )


def _read_state(part: Path) -> _Finished | None:
    try:
        return decode_json((part / STATE).read_bytes(), _Finished)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


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
        _write(part / path, content)
    return [PreparedFile(path, len(text), hashlib.sha256(text).hexdigest()) for path, text in files.items()]


def _shards(planned: Plan, part: Path, state: _Finished, on_progress: OnProgress) -> list[PreparedFile]:
    kept = {file.path: file for file in state.files}
    finished: list[PreparedFile] = []
    done_bytes = planned.source_bytes
    total_bytes = done_bytes + planned.size_bytes
    for shards in planned.shards:
        for shard in shards:
            on_progress(done_bytes, total_bytes, shard.path)
            file = kept.get(shard.path)
            if file is None or not _is_whole(part, file):
                file = _write_shard(part, shard)
            finished.append(file)
            state = msgspec.structs.replace(
                state, files=tuple({**kept, **{each.path: each for each in finished}}.values())
            )
            _write(part / STATE, msgspec.json.encode(state))
            done_bytes += shard.size_bytes
            on_progress(done_bytes, total_bytes, shard.path)
    return finished


def _is_whole(part: Path, file: PreparedFile) -> bool:
    path = part / file.path
    return path.is_file() and path.stat().st_size == file.bytes and sha256_of(path) == file.sha256


def _write_shard(part: Path, shard: Shard) -> PreparedFile:
    path = part / shard.path
    path.parent.mkdir(parents=True, exist_ok=True)
    arriving = path.with_name(path.name + PART)
    values = _values(shard)
    with _disk_errors(arriving):
        safetensors.torch.save_file(values, arriving, metadata={"format": "pt"})
    # it was a temporary file of safetensors, which nobody but its owner may read
    shutil.copymode(part / STATE, arriving)
    file = PreparedFile(shard.path, arriving.stat().st_size, sha256_of(arriving))
    _sync(arriving)
    os.replace(arriving, path)
    _sync_folder(path.parent)
    return file


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """A failure of the disk at *path*, of which safetensors makes an error of its own, as what it is."""
    try:
        yield
    except SafetensorError as error:
        told = _OS_ERROR.search(str(error))
        if told is None:
            raise
        raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error


def _values(shard: Shard) -> dict[str, torch.Tensor]:
    """The tensors of one shard, read and converted one after the other."""
    values: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as opened:
        files: dict[str, Callable[[str], torch.Tensor]] = {}
        for move in shard.moves:
            path = move.tensor.file
            if path not in files:
                files[path] = _reader(Path(path), opened)
            with _disk_errors(Path(path)):
                value = files[path](move.tensor.name)
                if move.scale is not None:
                    value = value.to(torch.float32) * _scale(files[path](move.scale.name), move.scale)
            # a copy in any case: neither the mapping nor a larger storage is held on to
            values[move.parameter] = value.to(DTYPES[move.dtype], copy=True).contiguous()
    return values


def _scale(value: torch.Tensor, scale: Tensor) -> torch.Tensor:
    """What a weight is multiplied by: the published rule, in float32 (ADR 0028). Its shape fits, as `scaled` saw."""
    if not torch.isfinite(value).all():
        raise CheckpointRefused(f"{scale.file} has a scale that is no number: {scale.name}; download it again")
    return value.to(torch.float32) if value.numel() > 1 else value.to(torch.float32).reshape(())


def _reader(path: Path, opened: contextlib.ExitStack) -> Callable[[str], torch.Tensor]:
    if path.suffix == ".pth":
        return _read_torch(path).__getitem__
    # read, not mapped: the pages of a mapping would count as memory of this process until it is closed
    file = opened.enter_context(safe_open(path, framework="pt", device="cpu", backend="pread"))
    read: Callable[[str], torch.Tensor] = file.get_tensor
    return read


def _remove_strays(part: Path, manifest: Manifest) -> None:
    """What a run left that was killed in the middle of a file."""
    wanted = {file.path for file in manifest.files} | {MANIFEST, STATE, LOCK}
    for path in part.rglob("*"):
        if path.is_file() and str(path.relative_to(part)) not in wanted:
            path.unlink()


def _json(content: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content))


def _write(path: Path, content: bytes) -> None:
    """All of it, or the file of before."""
    arriving = path.with_name(path.name + PART)
    with arriving.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(arriving, path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ── verifying ────────────────────────────────────────────────────────────────────────────────────────────────────────


def verify(folder: Path, layouts: tuple[Layout, ...], on_bytes: Callable[[int], None]) -> tuple[Manifest, list[str]]:
    """Everything that is wrong with a prepared folder: files against the manifest, then keys and shapes against the
    configurations of this version, and what the tokenizer makes of some texts. Raises CheckpointRefused where it is
    none.
    """
    manifest = read_manifest(folder)
    faults = [*quick_faults(folder, manifest), *content_faults(folder, manifest, on_bytes)]
    if not any(fault.startswith("tokenizer/") for fault in faults):
        faults += [f"tokenizer: {fault}" for fault in load_faults(folder / "tokenizer", manifest.tokens)]
    layout = next((each for each in layouts if (each.model, each.variant) == (manifest.model, manifest.variant)), None)
    if layout is None:
        return manifest, [*faults, f"this version of Warmlane knows no {manifest.model} {manifest.variant}"]
    for component in layout.components:
        faults += _component_faults(folder, component)
    return manifest, faults


def _component_faults(folder: Path, component: Component) -> Iterator[str]:
    name = component.name
    try:
        config = decode_json((folder / name / "config.json").read_bytes(), object)
        tensors = read_sharded(folder / name)
    except (CheckpointRefused, OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        yield f"{name}: {error}"
        return
    if config != component.config:
        yield f"{name}/config.json differs from that of this version of Warmlane"
    expected = parameters_of(component)
    missing, strays = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        yield f"{name} lacks {some(missing)}"
    if strays:
        yield f"{name} has tensors that {component.kind} does not have: {some(strays)}"
    misshapen = [key for key in expected.keys() & tensors.keys() if expected[key] != tensors[key].shape]
    if misshapen:
        yield f"{name} has tensors of another shape: {some(sorted(misshapen))}"
