"""`inference_settings.json`, parsed and checked once: the one source of every model, limit and fixed parameter.

`parse_settings` refuses a file with a mistake and names the place (`$.models.anisora.…`); nothing starts with
half-understood settings. `InferenceSettings.catalog(profile)` is what the processes use.

Ranges are checked after the form, and not by `msgspec.Meta`, which ends at the first value that is out of its range: an
operator gets every mistake at once, with its unit.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from contracts.checkpoints import Checkpoint, checkpoint_mistakes, presence_mistakes
from contracts.fields import (
    Enforcement,
    GenerationFields,
    GeometryFields,
    ImageField,
    VideoGenerationConstraints,
    field_mistakes,
    max_volume,
    volume_mistakes,
)
from contracts.nesting import decode_json, loads
from contracts.order import Policy
from contracts.strict import Strict
from contracts.topology import DEGRADED_MAX_AGE_S

SCHEMA: Final = 1
MODEL_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


class SettingsError(ValueError):
    """The settings cannot be used. The text names the place of the mistake and what is expected there."""


class Timeouts(Strict, frozen=True):
    """How long a load, one step and a whole inference may take, in seconds."""

    load_s: float
    step_s: float
    total_s: float


class OverloadPolicy(Strict, frozen=True):
    """What a gateway does about a degraded queue that is too long, beside refusing requests that find it full (ADR
    0039).

    *displace*: a request of a higher class takes the place of one of a lower class that waits there.
    *refuse_expected*: a request that will almost certainly not start within its wait is refused at once.
    """

    displace: bool = False
    refuse_expected: bool = False


# The size with which a lane warms up, of those that the limits admit. The largest shows that the card can serve it
# before a client asks for it; on a CPU it would take minutes.
WarmUp = Literal["largest", "smallest"]


class ProfileSettings(Strict, frozen=True):
    """One size of a model: `tiny` for any machine, `production` for real cards."""

    geometry: GeometryFields
    image: ImageField
    timeouts: Timeouts
    checkpoint: Checkpoint
    warm_up: WarmUp = "largest"


class ModelSettings(Strict, frozen=True):
    """One entry of `models`. A third model is a third entry, not code.

    *enforcement* is the switch of docs/operate/rollback.md.
    """

    title: str
    generation: GenerationFields
    profiles: dict[str, ProfileSettings]
    aliases: tuple[str, ...] = ()
    lanes: int = 1
    enforcement: Enforcement = "reject"


class Windows(Strict, frozen=True):
    """The protocol's times, in seconds (design §4, §6).

    On the degraded queue the wait ends *degraded_margin_s* before the limit: a gateway looks up to 0.1 s late, and
    then acts.
    *drain_s* replaces the result of `drains_s`, unless it is None.
    """

    wait_limit_s: float
    degraded_margin_s: float
    lease_s: float
    lease_renew_s: float
    heartbeat_s: float
    health_timeout_s: float
    reconnect_grace_s: float
    drain_s: float | None = None

    def wait_s(self, route: Literal["lane", "degraded"]) -> float:
        """How long a task may wait on *route*."""
        return self.wait_limit_s - (self.degraded_margin_s if route == "degraded" else 0.0)

    def drains_s(self, models: Iterable["ModelEntry"]) -> float:
        """How long a worker of *models* that is asked to stop may work on the task in hand before it hands it back: as
        long as an inference of the slowest of them may take."""
        return max((entry.timeouts.total_s for entry in models), default=0.0) if self.drain_s is None else self.drain_s


class Warmth(Strict, frozen=True):
    """When a lane gives up a warm pipeline by itself (design §6). 0 means never.

    *recycle_after_tasks*: reload it after this many tasks. *recycle_residue_bytes*: reload it when the memory that
    tasks leave behind has grown by this much. *evict_idle_s*: unload it after this many seconds without a task.
    *renew_after_failures*: reload it in a fresh process when this many tasks in a row ended `inference_failed`; the
    degraded worker does the same.
    """

    recycle_after_tasks: int
    recycle_residue_bytes: int
    evict_idle_s: float
    renew_after_failures: int = 3


class Tolerances(Strict, frozen=True):
    """How much more memory an empty pipeline host may have in use than before its first load, in bytes (ADR 0029).

    *card_bytes*: on a card, where the driver loads kernels when they are first used. *host_bytes*: in the resident
    memory of a host on a CPU.
    """

    card_bytes: int = 512 << 20
    host_bytes: int = 48_000_000


class ModelEntry(Struct, frozen=True, kw_only=True):
    """A model as the processes see it, in one profile. *lanes* is how many of it are wanted.

    *enforcement* `report`: a request with a wrong fixed value is accepted with the fixed one (`generation.validate`).
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    lanes: int
    constraints: VideoGenerationConstraints
    timeouts: Timeouts
    checkpoint: Checkpoint
    warm_up: WarmUp = "largest"
    enforcement: Enforcement = "reject"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the model: its own, then its aliases."""
        return (self.name, *self.aliases)


class Catalog(Struct, frozen=True, kw_only=True):
    """The settings of one profile. *keep_s* is the gateway's `--keep`, the longest for which a request may ask to keep
    its task; None in other processes."""

    profile: str
    windows: Windows
    warmth: Warmth
    tolerances: Tolerances
    degraded: Policy
    overload: OverloadPolicy
    attempts: int
    lane_queue_max_msgs: int
    models: Mapping[str, ModelEntry]
    keep_s: float | None = None

    def with_lanes(self, lanes: Mapping[str, int]) -> "Catalog":
        """These settings with *lanes* wanted for each model, and none for a model that is not named."""
        models = {name: replace(entry, lanes=lanes.get(name, 0)) for name, entry in self.models.items()}
        return replace(self, models=models)

    def resolve(self, name: str) -> ModelEntry | None:
        """The model with this *name* or alias, in upper or lower case; None if there is none."""
        if name in self.models:
            return self.models[name]
        wanted = name.casefold()
        return next((entry for entry in self.models.values() if wanted in map(str.casefold, entry.names)), None)


class InferenceSettings(Strict, frozen=True):
    """The whole file."""

    schema: Literal[1]
    windows: Windows
    warmth: Warmth
    attempts: int
    lane_queue_max_msgs: int
    models: dict[str, ModelSettings]
    tolerances: Tolerances = Tolerances()
    degraded: Policy = Policy()
    overload: OverloadPolicy = OverloadPolicy()

    def catalog(self, profile: str) -> Catalog:
        """The settings of *profile*. Raises SettingsError when a model has no such profile."""
        models = {}
        for name, model in self.models.items():
            chosen = model.profiles.get(profile)
            if chosen is None:
                known = ", ".join(sorted(model.profiles))
                raise SettingsError(f"$.models.{name}.profiles: no profile {profile!r}; it has {known}")
            models[name] = ModelEntry(
                name=name,
                title=model.title,
                aliases=model.aliases,
                lanes=model.lanes,
                constraints=VideoGenerationConstraints(
                    prompt=model.generation.prompt,
                    negative_prompt=model.generation.negative_prompt,
                    image=chosen.image,
                    width=chosen.geometry.width,
                    height=chosen.geometry.height,
                    num_frames=chosen.geometry.num_frames,
                    max_volume=max_volume(chosen.geometry),
                    fps=chosen.geometry.fps,
                    seed=model.generation.seed,
                    steps=model.generation.steps,
                    cfg=model.generation.cfg,
                ),
                timeouts=chosen.timeouts,
                checkpoint=chosen.checkpoint,
                warm_up=chosen.warm_up,
                enforcement=model.enforcement,
            )
        return Catalog(
            profile=profile,
            windows=self.windows,
            warmth=self.warmth,
            tolerances=self.tolerances,
            degraded=self.degraded,
            overload=self.overload,
            attempts=self.attempts,
            lane_queue_max_msgs=self.lane_queue_max_msgs,
            models=models,
        )


def parse_settings(text: bytes) -> InferenceSettings:
    """The settings in *text* (JSON). Raises SettingsError naming every mistake that was found, with its place."""
    try:
        settings = decode_json(text, InferenceSettings)
        loads(text, object_pairs_hook=_distinct)
    except msgspec.ValidationError as error:
        raise SettingsError(_located(error, text)) from error
    except msgspec.DecodeError as error:
        raise SettingsError(str(error)) from error
    mistakes = list(_mistakes(settings))
    if mistakes:
        raise SettingsError("; ".join(mistakes))
    return settings


def load_settings(path: Path | None = None) -> InferenceSettings:
    """The settings of the file at *path*, or the packaged ones. Raises SettingsError."""
    if path is None:
        return parse_settings(resources.files(__package__).joinpath("inference_settings.json").read_bytes())
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    try:
        return parse_settings(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # an entry that was copied and not renamed would silently replace the first one
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise SettingsError(f"{name!r} appears twice in one object")
        found[name] = value
    return found


def _located(error: msgspec.ValidationError, text: bytes) -> str:
    """The text of *error* with the full place. msgspec writes `[...]` for the key of a table, so each entry is
    converted on its own to find the wrong one."""
    if "`$.models[...]" not in str(error):
        return str(error)
    try:
        document = decode_json(text, dict[str, Any])
    except msgspec.DecodeError:  # further on the text is not JSON at all
        return str(error)
    for name, model in document["models"].items():
        wrong = _refusal(model, ModelSettings)
        if wrong is None:
            continue
        if "`$.profiles[...]" in wrong:
            for profile_name, profile in model["profiles"].items():
                wrong_there = _refusal(profile, ProfileSettings)
                if wrong_there is not None:
                    return _within(f"$.models.{name}.profiles.{profile_name}", wrong_there)
        return _within(f"$.models.{name}", wrong)
    return str(error)


def _refusal(value: Any, kind: type[Struct]) -> str | None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _within(place: str, message: str) -> str:
    return message.replace("`$", f"`{place}") if "`$" in message else f"{message} - at `{place}`"


def _mistakes(settings: InferenceSettings) -> Iterator[str]:
    if not settings.models:
        yield "$.models: name at least one model"
    if settings.attempts < 1:
        yield "$.attempts: at least 1"
    if settings.lane_queue_max_msgs < 1:
        yield "$.lane_queue_max_msgs: at least 1"
    for name, value_s in msgspec.structs.asdict(settings.windows).items():
        if value_s is not None and not 0 < value_s < float("inf"):
            yield f"$.windows.{name}: more than 0 seconds"
    for name, limit in msgspec.structs.asdict(settings.warmth).items():
        if not 0 <= limit < float("inf"):
            yield f"$.warmth.{name}: 0 (never) or more"
    for name, limit in msgspec.structs.asdict(settings.tolerances).items():
        if limit < 1:
            yield f"$.tolerances.{name}: more than 0 bytes"
    for name in ("swap_share", "turn_share"):
        if not 0 < getattr(settings.degraded, name) < 1:
            yield f"$.degraded.{name}: a share of the card's time, more than 0 and less than 1"
    if not 0 <= settings.degraded.slice_max_s < float("inf"):
        yield "$.degraded.slice_max_s: 0 seconds or more"
    if settings.windows.wait_limit_s > DEGRADED_MAX_AGE_S:
        yield f"$.windows.wait_limit_s: at most {DEGRADED_MAX_AGE_S:g}, when the degraded queue drops its messages"
    if settings.windows.degraded_margin_s >= settings.windows.wait_limit_s:
        yield "$.windows.degraded_margin_s: less than wait_limit_s"
    if settings.windows.lease_renew_s * 2 > settings.windows.lease_s:
        yield "$.windows.lease_renew_s: at most half of lease_s, so that one lost renewal costs nothing"
    if settings.windows.heartbeat_s * 2 > settings.windows.health_timeout_s:
        yield "$.windows.heartbeat_s: at most half of health_timeout_s"
    taken: dict[str, str] = {name.casefold(): name for name in settings.models}
    for name, model in settings.models.items():
        place = f"$.models.{name}"
        if not MODEL_NAME.fullmatch(name):
            yield f"{place}: a model's name is a to z, 0 to 9 and _, at most 32, and starts with a letter"
        if model.lanes < 1:
            yield f"{place}.lanes: at least 1"
        for alias in model.aliases:
            owner = taken.setdefault(alias.casefold(), name)
            if owner != name:
                yield f"{place}.aliases: {alias!r} is taken by {owner}; upper and lower case are one name"
        if not model.profiles:
            yield f"{place}.profiles: name at least one profile"
        yield from field_mistakes(f"{place}.generation", model.generation)
        for profile_name, profile in model.profiles.items():
            yield from _profile_mistakes(f"{place}.profiles.{profile_name}", profile)


def _profile_mistakes(place: str, profile: ProfileSettings) -> Iterator[str]:
    yield from field_mistakes(f"{place}.geometry", profile.geometry)
    yield from volume_mistakes(f"{place}.geometry", profile.geometry)
    if profile.image.presence != "unsupported" and min(profile.image.max_bytes, profile.image.max_pixels) < 1:
        yield f"{place}.image: max_bytes and max_pixels are needed where an image is accepted"
    yield from presence_mistakes(f"{place}.image.presence", profile.image.presence, profile.checkpoint)
    for name, value_s in msgspec.structs.asdict(profile.timeouts).items():
        if not 0 < value_s < float("inf"):
            yield f"{place}.timeouts.{name}: more than 0 seconds"
    yield from checkpoint_mistakes(f"{place}.checkpoint", profile.checkpoint)
