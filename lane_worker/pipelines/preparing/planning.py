"""Which published tensors become which shards, and what else is written. Reads headers, and writes nothing."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from lane_worker.checkpoints.found import CheckpointRefused, Tensor, read_safetensors, read_sharded
from lane_worker.checkpoints.layouts import TOKENIZER_FOLDER, Component, Layout
from lane_worker.checkpoints.plan import SHARD_BYTES, Shard, is_finer, matched, shards_of, split_all_in_one
from lane_worker.pipelines.preparing.parameters import parameters_of
from lane_worker.pipelines.preparing.torch_files import first_line, headers_of_torch
from lane_worker.pipelines.tokens import PreparedTokenizer, prepared_tokenizer


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
        """Whether the published file *name* comes from --from, and not from --base."""
        return self.sources[name].is_relative_to(self.source)

    def way(self) -> str:
        """A digest of how shards are made of published files. It covers names and tensors, not values."""
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
        described = msgspec.json.encode((self.layout.model, self.layout.variant, shards))
        return hashlib.sha256(described).hexdigest()


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
            tensors = headers_of_torch(path)
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
        tensors = headers_of_torch(path) if path.suffix == ".pth" else read_sharded(path)
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
            f"{folder} holds a tokenizer that does not load ({first_line(error)}); download {TOKENIZER_FOLDER} again"
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
