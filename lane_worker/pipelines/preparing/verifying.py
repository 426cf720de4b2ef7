"""Whether a prepared folder is still what was written, and what this version of Warmlane loads."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from contracts.nesting import decode_json
from lane_worker.checkpoints.folder import Manifest, content_faults, quick_faults, read_manifest
from lane_worker.checkpoints.found import CheckpointRefused, read_sharded, some
from lane_worker.checkpoints.layouts import Component, Layout
from lane_worker.pipelines.preparing.parameters import parameters_of
from lane_worker.pipelines.tokens import load_faults


def verify(folder: Path, layouts: tuple[Layout, ...], on_bytes: Callable[[int], None]) -> tuple[Manifest, list[str]]:
    """Everything that is wrong with a prepared folder: files against the manifest, then keys and shapes against the
    configurations of this version, and how the tokenizer encodes some texts. Raises CheckpointRefused where *folder* is
    no prepared folder.
    """
    manifest = read_manifest(folder)
    faults = [*quick_faults(folder, manifest), *content_faults(folder, manifest, on_bytes)]
    if not any(fault.startswith("tokenizer/") for fault in faults):
        faults += [f"tokenizer: {fault}" for fault in load_faults(folder / "tokenizer", manifest.tokens)]
    layout = next((each for each in layouts if (each.model, each.variant) == (manifest.model, manifest.variant)), None)
    if layout is None:
        return manifest, [*faults, f"this version of Warmlane does not know {manifest.model} {manifest.variant}"]
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
