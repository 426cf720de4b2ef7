"""`inference_settings.json`, parsed and checked once: the one source of every model, limit and fixed parameter.

`parse_settings` refuses a file with a mistake and names the place (`$.models.anisora.…`); nothing starts with
half-understood settings. `InferenceSettings.catalog(profile)` is what the processes use.

Ranges are checked after the form, and not by `msgspec.Meta`, which ends at the first value that is out of its range: an
operator gets every mistake at once, with its unit.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from contracts.nesting import decode_json, loads
from contracts.topology import DEGRADED_MAX_AGE_S

SCHEMA: Final = 1
MediaType = Literal["image/png", "image/jpeg", "image/webp"]  # those whose header `contracts.images` reads
MODEL_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
SEED_SPAN: Final = 2**32
PROMPT_SUFFIX_MAX_CHARS: Final = 500
# What becomes of a request with another value for a fixed field: a 422, or the fixed value and a warning.
Enforcement = Literal["reject", "report"]
# What no settings file may go below.
LOWEST: Final[Mapping[str, int]] = {"seed": 0, "cfg": 0, "steps": 1, "width": 1, "height": 1, "num_frames": 1, "fps": 1}


Presence = Literal["required", "optional", "unsupported"]
# Which presence of an image a pipeline class of diffusers can serve. Of a class that is not here nothing is known.
PRESENCES: Final[Mapping[str, tuple[Presence, ...]]] = {
    "WanPipeline": ("unsupported",),
    "WanImageToVideoPipeline": ("required",),
    "WanVACEPipeline": ("required", "optional", "unsupported"),
}


class SettingsError(ValueError):
    """The settings cannot be used. The text names the place of the mistake and what is expected there."""


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class TextField(_Strict, frozen=True):
    """A text of *min_chars* to *max_chars* characters."""

    min_chars: int
    max_chars: int


class NegativePromptField(TextField, frozen=True):
    """*guided_default* is used where a request leaves the text out and its cfg is above 1: at 1 the model reads
    none (ADR 0028). An empty text that a request sends stays empty.
    """

    guided_default: str = ""

    def when_absent(self, cfg: float) -> str:
        """What a request with this *cfg* and no negative prompt gets."""
        return self.guided_default if cfg > 1 else ""


class NumberField(_Strict, frozen=True):
    """A number: fixed, or with a default between two limits.

    With *step*, a value v is valid when (v - offset) is a multiple of step, so 4k+1 is step 4, offset 1.
    """

    fixed: float | None = None
    default: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    step: int | None = None
    offset: int = 0

    @property
    def value_when_absent(self) -> float | None:
        return self.default if self.fixed is None else self.fixed


class IntegerField(_Strict, frozen=True):
    """As `NumberField`, for whole numbers."""

    fixed: int | None = None
    default: int | None = None
    minimum: int | None = None
    maximum: int | None = None
    step: int | None = None
    offset: int = 0

    @property
    def value_when_absent(self) -> int | None:
        return self.default if self.fixed is None else self.fixed


class ImageField(_Strict, frozen=True):
    """Whether a request may or must carry an image, and how large it may be."""

    presence: Presence
    max_bytes: int = 0
    max_pixels: int = 0
    media_types: tuple[MediaType, ...] = ("image/png", "image/jpeg", "image/webp")


class GenerationFields(_Strict, frozen=True):
    """The limits of a model that hold in every profile (FR-004..006 stand here)."""

    prompt: TextField
    negative_prompt: NegativePromptField
    seed: IntegerField
    steps: IntegerField
    cfg: NumberField


class GeometryFields(_Strict, frozen=True):
    """The limits that depend on the size of the checkpoint.

    *max_volume*: the most pixels that all frames may have together, width x height x num_frames, on which the memory of
    an inference follows (ADR 0025). Absent, the three fields' own limits are the only ones.
    """

    width: IntegerField
    height: IntegerField
    num_frames: IntegerField
    fps: IntegerField
    max_volume: int | None = None


class VideoGenerationConstraints(_Strict, frozen=True):
    """Everything a request for one model is checked against (the spec's entity of this name).

    *max_volume*: the most that width x height x num_frames may be.
    """

    prompt: TextField
    negative_prompt: NegativePromptField
    image: ImageField
    width: IntegerField
    height: IntegerField
    num_frames: IntegerField
    max_volume: int
    fps: IntegerField
    seed: IntegerField
    steps: IntegerField
    cfg: NumberField


class Timeouts(_Strict, frozen=True):
    """How long a load, one step and a whole inference may take, in seconds."""

    load_s: float
    step_s: float
    total_s: float


# Those of diffusers that take a flow shift, predict a flow as Wan does, and add no noise of their own: SASolver and
# FlowMatchLCM draw it past the seed, so that the same request would give another video each time.
SchedulerKind = Literal[
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
]
# The one that can place its steps by `"sigmas": "beta"`.
BETA_KIND: Final = "FlowMatchEulerDiscreteScheduler"

# Those of diffusers that run on a CUDA card without downloading code (`*_hub` does).
AttentionBackend = Literal[
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_flash",
    "_native_math",
    "flex",
    "flash",
    "flash_varlen",
    "_flash_3",
    "_flash_varlen_3",
    "sage",
    "sage_varlen",
    "_sage_qk_int8_pv_fp8_cuda",
    "_sage_qk_int8_pv_fp8_cuda_sm90",
    "_sage_qk_int8_pv_fp16_cuda",
    "_sage_qk_int8_pv_fp16_triton",
    "xformers",
]


class Scheduler(_Strict, frozen=True):
    """The diffusers scheduler class of a checkpoint and its flow shift.

    *sigmas*: where its steps lie before the shift; `even` as diffusers has them, `beta` as ComfyUI's scheduler of that
    name has them (ADR 0028).
    """

    kind: SchedulerKind
    flow_shift: float
    sigmas: Literal["even", "beta"] = "even"


class RandomWeights(_Strict, frozen=True):
    """Recipe of a tiny random-weight pipeline: seed, and 1 or 2 transformers (Wan 2.2 has two experts)."""

    seed: int
    experts: Literal[1, 2] = 1


class GroupOffload(_Strict, frozen=True):
    """How `offload: group` moves the weights of transformers and text encoder to the card and away.

    *level* `leaf`: layer by layer. `block`: the transformers by *blocks* of their blocks at a time, the rest by layer.
    *stream*: the next group is copied while one computes. Then *pinned* host memory holds all that is moved, or else a
    group at a time; *record_stream* spares a synchronisation for each group and holds memory a little longer.
    """

    level: Literal["leaf", "block"] = "leaf"
    blocks: int = 1
    stream: bool = True
    record_stream: bool = False
    pinned: bool = True


class Checkpoint(_Strict, frozen=True):
    """The diffusers folder below the models folder that the pipeline host loads, and how to load it
    (docs/models/checkpoint-options.md).

    *expected_bytes*: all weights as loaded, where the folder is not there to be counted. *activation_bytes*: what an
    inference needs beside them. *layerwise_casting*: in which type the transformers' layers are kept between two uses.
    *prompt_suffix* is added to each prompt, after a blank; no client sees it. *device_map*: with `offload: none`, each
    tensor goes to the card as it is read, not all of them when all were read.
    """

    pipeline: str
    folder: str
    dtype: Literal["float32", "bfloat16", "float16"]
    scheduler: Scheduler
    offload: Literal["none", "model", "group"] = "none"
    group_offload: GroupOffload | None = None
    device_map: bool = False
    layerwise_casting: Literal["float8_e4m3fn"] | None = None
    vae_tiling: bool = False
    attention_backend: AttentionBackend = "native"
    prompt_suffix: str = ""
    expected_bytes: int = 0
    activation_bytes: int = 0
    boundary_ratio: float | None = None
    random_weights: RandomWeights | None = None


# With which of the sizes that the limits admit a lane warms up. The largest shows that the card can serve it, before a
# client does; on a CPU it would take minutes.
WarmUp = Literal["largest", "smallest"]


class ProfileSettings(_Strict, frozen=True):
    """One size of a model: `tiny` for any machine, `production` for real cards."""

    geometry: GeometryFields
    image: ImageField
    timeouts: Timeouts
    checkpoint: Checkpoint
    warm_up: WarmUp = "largest"


class ModelSettings(_Strict, frozen=True):
    """One entry of `models`. A third model is a third entry, not code.

    *enforcement* is the switch of docs/operate/rollback.md.
    """

    title: str
    generation: GenerationFields
    profiles: dict[str, ProfileSettings]
    aliases: tuple[str, ...] = ()
    lanes: int = 1
    enforcement: Enforcement = "reject"


class Windows(_Strict, frozen=True):
    """The protocol's times, in seconds (design §4, §6).

    On the degraded queue the wait ends *degraded_margin_s* before the limit: timers come late, by up to 0.25 s.
    *drain_s* is `drains_s`, where it is not None.
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
        """For how long a task may wait on *route*."""
        return self.wait_limit_s - (self.degraded_margin_s if route == "degraded" else 0.0)

    def drains_s(self, models: Iterable["ModelEntry"]) -> float:
        """How long a worker of *models* that is asked to stop may work on the task in hand before it hands it back:
        as long as an inference of any of them may take."""
        return max((entry.timeouts.total_s for entry in models), default=0.0) if self.drain_s is None else self.drain_s


class Warmth(_Strict, frozen=True):
    """When a lane gives up a warm pipeline by itself (design §6). 0 means never.

    *recycle_after_tasks*: reload it after this many tasks. *recycle_residue_bytes*: reload it when what tasks leave
    behind has grown by this much. *evict_idle_s*: unload it after this many seconds without a task.
    *renew_after_failures*: reload it in a fresh process when this many tasks in a row ended `inference_failed`; the
    degraded worker too.
    """

    recycle_after_tasks: int
    recycle_residue_bytes: int
    evict_idle_s: float
    renew_after_failures: int = 3


class Tolerances(_Strict, frozen=True):
    """How much more than before its first load an empty pipeline host may have in use, in bytes (ADR 0029).

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
        """All that it goes by: its name, then its aliases."""
        return (self.name, *self.aliases)


class Catalog(Struct, frozen=True, kw_only=True):
    """The settings of one profile."""

    profile: str
    windows: Windows
    warmth: Warmth
    tolerances: Tolerances
    attempts: int
    lane_queue_max_msgs: int
    models: Mapping[str, ModelEntry]

    def with_lanes(self, lanes: Mapping[str, int]) -> "Catalog":
        """These settings where *lanes* per model are wanted; of a model that is not named none is."""
        models = {name: replace(entry, lanes=lanes.get(name, 0)) for name, entry in self.models.items()}
        return replace(self, models=models)

    def resolve(self, name: str) -> ModelEntry | None:
        """The model called *name*, or one of whose aliases it is, in any case; None when there is none."""
        if name in self.models:
            return self.models[name]
        wanted = name.casefold()
        return next((entry for entry in self.models.values() if wanted in map(str.casefold, entry.names)), None)


class InferenceSettings(_Strict, frozen=True):
    """The whole file."""

    schema: Literal[1]
    windows: Windows
    warmth: Warmth
    attempts: int
    lane_queue_max_msgs: int
    models: dict[str, ModelSettings]
    tolerances: Tolerances = Tolerances()

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
                    max_volume=_max_volume(chosen.geometry),
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
            raise SettingsError(f"{name!r} stands twice in one object")
        found[name] = value
    return found


def _located(error: msgspec.ValidationError, text: bytes) -> str:
    """msgspec writes `[...]` for the key of a table; each entry on its own shows which one it is."""
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
        yield from _field_mistakes(f"{place}.generation", model.generation)
        for profile_name, profile in model.profiles.items():
            yield from _profile_mistakes(f"{place}.profiles.{profile_name}", profile)


def _profile_mistakes(place: str, profile: ProfileSettings) -> Iterator[str]:
    yield from _field_mistakes(f"{place}.geometry", profile.geometry)
    yield from _volume_mistakes(f"{place}.geometry", profile.geometry)
    if profile.image.presence != "unsupported" and min(profile.image.max_bytes, profile.image.max_pixels) < 1:
        yield f"{place}.image: max_bytes and max_pixels are needed where an image is accepted"
    yield from _presence_mistakes(f"{place}.image.presence", profile.image.presence, profile.checkpoint)
    for name, value_s in msgspec.structs.asdict(profile.timeouts).items():
        if not 0 < value_s < float("inf"):
            yield f"{place}.timeouts.{name}: more than 0 seconds"
    yield from _checkpoint_mistakes(f"{place}.checkpoint", profile.checkpoint)


def _checkpoint_mistakes(place: str, checkpoint: Checkpoint) -> Iterator[str]:
    folder, suffix, group = checkpoint.folder, checkpoint.prompt_suffix, checkpoint.group_offload
    if folder != Path(folder).name or folder in {"", ".", ".."}:
        yield f"{place}.folder: one folder name without a slash, got {folder!r}"
    if not 0 < checkpoint.scheduler.flow_shift < float("inf"):
        yield f"{place}.scheduler.flow_shift: more than 0"
    if checkpoint.scheduler.sigmas == "beta" and checkpoint.scheduler.kind != BETA_KIND:
        yield f"{place}.scheduler.sigmas: beta only with {BETA_KIND}"
    if checkpoint.boundary_ratio is not None and not 0 < checkpoint.boundary_ratio < 1:
        yield f"{place}.boundary_ratio: between 0 and 1, got {checkpoint.boundary_ratio:g}"
    for name in ("expected_bytes", "activation_bytes"):
        if getattr(checkpoint, name) < 0:
            yield f"{place}.{name}: 0 or more"
    if len(suffix) > PROMPT_SUFFIX_MAX_CHARS or suffix != suffix.strip():
        yield f"{place}.prompt_suffix: at most {PROMPT_SUFFIX_MAX_CHARS} characters, without blanks around them"
    if checkpoint.device_map and (checkpoint.offload != "none" or checkpoint.layerwise_casting is not None):
        # casting is done on the host: the card would hold all weights before they are cast
        yield f'{place}.device_map: only with "offload": "none", and without layerwise_casting'
    if group is None:
        return
    if checkpoint.offload != "group":
        yield f'{place}.group_offload: only with "offload": "group"'
    if group.blocks < 1:
        yield f"{place}.group_offload.blocks: at least 1"
    if group.blocks > 1 and (group.level == "leaf" or group.stream):
        yield f"{place}.group_offload.blocks: 1, unless level is block and stream is off"
    if group.record_stream and not group.stream:
        yield f"{place}.group_offload.record_stream: only with stream"


def _presence_mistakes(place: str, presence: Presence, checkpoint: Checkpoint) -> Iterator[str]:
    """Rules out settings by which an accepted request could not run, or would need an image that nobody sent."""
    served = PRESENCES.get(checkpoint.pipeline)
    if served is None or presence in served:
        return
    if "unsupported" not in served and checkpoint.random_weights is not None:
        return  # a lane makes an image for random weights, where no picture is worth looking at (ADR 0022)
    yield f"{place}: {' or '.join(served)} with checkpoint.pipeline {checkpoint.pipeline}, got {presence}"


def _max_volume(geometry: GeometryFields) -> int:
    """The limit as it is set, or what the fields' own limits admit."""
    return geometry.max_volume if geometry.max_volume is not None else _volume(geometry, "maximum")


def _volume(geometry: GeometryFields, which: Literal["default", "maximum"]) -> int:
    sides = (geometry.width, geometry.height, geometry.num_frames)
    return math.prod((getattr(side, which) if side.fixed is None else side.fixed) or 0 for side in sides)


def _volume_mistakes(place: str, geometry: GeometryFields) -> Iterator[str]:
    """A request that names no size must be one that is accepted."""
    least = _volume(geometry, "default")
    if geometry.max_volume is not None and geometry.max_volume < least:
        yield f"{place}.max_volume: at least {least}, the default size's width x height x num_frames"


def _field_mistakes(place: str, fields: GenerationFields | GeometryFields) -> Iterator[str]:
    for name in fields.__struct_fields__:
        field = getattr(fields, name)
        if name == "max_volume":
            continue  # no field of a request
        if isinstance(field, TextField):
            if not 0 <= field.min_chars <= field.max_chars:
                yield f"{place}.{name}: 0 <= min_chars <= max_chars"
            if isinstance(field, NegativePromptField) and len(field.guided_default) > field.max_chars:
                yield f"{place}.{name}.guided_default: at most {field.max_chars} characters"
        else:
            yield from _number_mistakes(f"{place}.{name}", field, needs_default=name != "seed")
            lowest, allowed = field.minimum if field.fixed is None else field.fixed, LOWEST[name]
            if lowest is not None and lowest < allowed:
                yield f"{place}.{name}: at least {allowed}, got {lowest}"
            if name == "seed" and (field.maximum or 0) >= SEED_SPAN:
                yield f"{place}.seed.maximum: below {SEED_SPAN}"


def _number_mistakes(place: str, field: IntegerField | NumberField, *, needs_default: bool) -> Iterator[str]:
    if field.fixed is not None:
        if any(value is not None for value in (field.default, field.minimum, field.maximum, field.step)):
            yield f"{place}: a fixed field has no default, limits or step"
        return
    if field.minimum is None or field.maximum is None or field.minimum > field.maximum:
        yield f"{place}: fixed, or minimum <= maximum"
        return
    if field.step is not None and field.step < 1:
        yield f"{place}.step: at least 1"
        return
    if field.default is None:
        if needs_default:
            yield f"{place}.default: missing"
        return
    if not field.minimum <= field.default <= field.maximum:
        yield f"{place}.default: {field.default} is outside {field.minimum} to {field.maximum}"
    elif field.step is not None and (field.default - field.offset) % field.step:
        yield f"{place}.default: {field.default} is not {field.step} k + {field.offset}"
