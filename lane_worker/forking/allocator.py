"""How torch's allocator for cards has to be set up (FR-010), and whether it is. Imports no torch.

`environment` is what a worker gives its fork server; `require` is what the fork server asks of its own environment
before it imports torch. That torch took it, `lane_worker/pipelines/child.py` reads back from torch.
"""

from collections.abc import Mapping
from typing import Final

from contracts.fit import PINNED_ROUND_MAX_BYTES

NAMES: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""What torch calls it now, and what it called it before: which of them wins is not the same for all settings."""
NVML_CHECK: Final = "PYTORCH_NVML_BASED_CUDA_CHECK"
WANTED: Final = "expandable_segments:True"
PINNED: Final = "pinned_max_round_threshold_mb"
"""Beyond how many MiB torch no longer rounds a pinned block up to a power of two (`c10/core/AllocatorConfig.h`)."""
PINNED_MB: Final = str(PINNED_ROUND_MAX_BYTES >> 20)


class AllocatorMisconfigured(Exception):
    """The environment asks for an allocator that Warmlane does not serve with (FR-010). The text says what to do."""


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The allocator's variables, with what *base* asks for beside `expandable_segments:True` and the limit of rounding.

    Raises AllocatorMisconfigured where *base* forbids that, or says two things at once.
    """
    given = {name: base[name] for name in NAMES if base.get(name)}
    if len(set(given.values())) > 1:
        words = " and ".join(f"{name}={text}" for name, text in given.items())
        raise AllocatorMisconfigured(f"{words} contradict each other: remove one of them")
    text = next(iter(given.values()), "")
    settings = _settings(text)
    segments = settings.get("expandable_segments")
    if segments is None:
        text = ",".join(filter(None, (text, WANTED)))
    elif segments != "True":  # torch takes no other spelling
        raise AllocatorMisconfigured(
            f"{' and '.join(given)} has expandable_segments:{segments}: remove it, Warmlane serves with {WANTED} only"
        )
    if settings.get("backend", "native") != "native":
        raise AllocatorMisconfigured(
            f"{' and '.join(given)} has backend:{settings['backend']}: remove it, only torch's own allocator has "
            "expandable segments and reports what it holds"
        )
    rounding = settings.get(PINNED)
    if rounding is None:
        text = f"{text},{PINNED}:{PINNED_MB}"
    elif rounding != PINNED_MB:
        raise AllocatorMisconfigured(
            f"{' and '.join(given)} has {PINNED}:{rounding}: remove it, Warmlane counts pinned memory with {PINNED_MB}"
        )
    # asking for CUDA must not start it: it would not survive the fork
    return dict.fromkeys(NAMES, text) | {NVML_CHECK: "1"}


def require(base: Mapping[str, str]) -> None:
    """Raises AllocatorMisconfigured unless *base* is as `environment` makes it."""
    wanted = environment(base)
    for name, text in wanted.items():
        if base.get(name) != text:
            raise AllocatorMisconfigured(f"{name} is {base.get(name)!r} where torch is imported, and has to be {text}")


def _settings(text: str) -> dict[str, str]:
    """The keys of an allocator's setting with their values; of a list in brackets only its beginning."""
    pairs = (part.partition(":") for part in text.split(","))
    return {key.strip(): value.strip() for key, _, value in pairs}
