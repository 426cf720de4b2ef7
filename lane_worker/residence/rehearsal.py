"""What a pipeline host rehearses before its base is read (ADR 0029). Pure."""

from collections.abc import Iterable

from msgspec.structs import replace

from contracts.checkpoints import Checkpoint


def to_rehearse(checkpoints: Iterable[Checkpoint]) -> tuple[Checkpoint, ...]:
    """One checkpoint for each group of *checkpoints* that run the same code: the same class, scheduler, types and ways
    to place weights.

    What a tiny pipeline cannot have, or need not have, is left out: a second transformer of the same class, and the
    attention backend, which may refuse heads that small.
    """
    return tuple(dict.fromkeys(map(_as_tiny, checkpoints)))


def _as_tiny(checkpoint: Checkpoint) -> Checkpoint:
    return replace(
        checkpoint,
        folder="tiny",
        scheduler=replace(checkpoint.scheduler, flow_shift=1.0),
        attention_backend="native",
        boundary_ratio=None,
        random_weights=None,
        prompt_suffix="",
        expected_bytes=0,
        activation_bytes=0,
    )
