"""Cases of the fuzz that the gateway has to accept, made to fit what JSON Schema cannot express."""

import contextlib
import math
import random
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (  # type: ignore[attr-defined]
    ParameterLocation,
)
from schemathesis.transport.serialization import Binary

from contracts.generation.errors import InvalidRequest
from contracts.keys import Presented
from contracts.settings import load_settings
from gateway.videos.fields import accepted
from tests.kit.gateway import MODELS
from tests.kit.samples import data_uri, picture

AnyCase = Case[Any]
PICTURE: Final = Binary(picture("PNG", (32, 32)))
IMAGE: Final = data_uri(PICTURE.data)
KINDS: Final = {"application/octet-stream": "PNG"}
FORM: Final = "multipart/form-data"


# What a request has to meet and JSON Schema cannot express. Cases that the gateway has to accept are made to fit.
RECEIVER: Final = "http://127.0.0.1:9/videos"  # where no process listens
UNSAYABLE: Final[Mapping[str, str]] = {
    "image": "a data URI or a file has to be a real image, within the model's limits",
    "forms": "an object in a form is JSON; left out",
    "webhook": "the address of a receiver has rules of its own (docs/use/webhooks.md)",
    "too_large": "width x height x num_frames has a limit of its own; where it is passed, the frames are left out",
    "cursor": "one that was handed out before; left out",
    "integers": "to JSON Schema 8.0 is an integer, to us it is none",
    "wait": "cut to 20 ms, so that a run ends today",
    "size, seconds": "those of `/v1/videos` come to width, height and frames, whose limits are those of the model",
    "model": "`/v1/videos` knows without it only where one model alone can do it",
    "after": "as `cursor`",
    "forms of videos": "what a part is, its text decides; only JSON is sent to `/v1/videos`",
    "sync": "answers when a worker has made the video, and none is here: only what is to be refused is sent",
}


class Ids(Struct, frozen=True):
    """Tasks that exist, one that waits and one of each end; and a *key* with all rights."""

    key: Presented

    pending: str
    done: str
    failed: str

    @property
    def ended(self) -> tuple[str, ...]:
        return self.done, self.failed


def _is_allowed(case: AnyCase, location: ParameterLocation) -> bool:
    """Whether *location* of a case is allowed, even if the case as a whole is not."""
    part = case.meta.components.get(location) if case.meta is not None else None
    return part is not None and part.mode is GenerationMode.POSITIVE


def _meet(case: AnyCase, ids: Ids, chance: random.Random) -> None:
    """Changes *case* so that most cases name something that exists, and none waits for long."""
    path = case.path_parameters
    if "task_id" in path and chance.random() < 0.8:
        likely = (ids.done, ids.done, ids.done, ids.failed)
        path["task_id"] = chance.choice(likely if case.path.endswith("/events") else (*likely, ids.pending))
    if "video_id" in path and chance.random() < 0.8:
        path["video_id"] = chance.choice((ids.done, ids.done, ids.failed, ids.pending))
    if "model" in path and chance.random() < 0.8:
        path["model"] = chance.choice(MODELS)
    if isinstance(case.body, dict) and _is_allowed(case, ParameterLocation.BODY):
        case.body = _like_ours(case.body, PICTURE if case.media_type == FORM else IMAGE)
        if case.path.startswith("/webhooks") and "url" in case.body:
            case.body["url"] = RECEIVER
        if isinstance(requests := case.body.get("requests"), list):
            case.body["requests"] = [_like_ours(each, IMAGE) for each in requests if isinstance(each, dict)]
        # anisora replaces wrong fixed values (see `fuzz.system`): few cases have a wrong one by chance
        if case.path == "/generate" and "anisora" in str(case.body.get("model", "")) and chance.random() < 0.8:
            case.body["steps"] = 4
        if case.media_type == FORM and "webhook" in case.body:
            del case.body["webhook"]
        if case.path.startswith("/v1/videos"):
            _meet_video(case.body)
    elif (kind := KINDS.get(case.media_type or "")) and _is_allowed(case, ParameterLocation.BODY):
        case.body = Binary(picture(kind, (32, 32)))
    for name in ("cursor", "after"):
        if case.query and name in case.query and _is_allowed(case, ParameterLocation.QUERY):
            del case.query[name]
    if case.query and "wait" in case.query and isinstance(case.query["wait"], int | float):
        case.query["wait"] = min(case.query["wait"], 0.02)


def _like_ours(body: dict[str, Any], image: Any) -> dict[str, Any]:
    """*body* made to fit what its description cannot say: to JSON Schema 8.0 is an integer, to the gateway an error."""
    ours = {
        name: int(value) if isinstance(value, float) and value.is_integer() and name != "cfg" else value
        for name, value in body.items()
    }
    if "image" in ours:
        ours["image"] = image
    if isinstance(webhook := ours.get("webhook"), dict):
        ours["webhook"] = {**webhook, "url": RECEIVER}
    if _is_too_large(ours):
        del ours["num_frames"]
    return ours


def _meet_video(body: dict[str, Any]) -> None:
    if "input_reference" in body:
        body["input_reference"] = {"image_url": IMAGE}
    body.pop("seconds", None)
    if "size" in body:
        body["size"] = "96x64"
        body.pop("width", None)
        body.pop("height", None)
    body.setdefault("model", _model_of(body))


def _model_of(body: dict[str, Any]) -> str:
    """A model that accepts *body*, which names none."""
    for model in MODELS:
        with contextlib.suppress(InvalidRequest):
            accepted({**body, "model": model}, load_settings().catalog("tiny"))
            return model
    return MODELS[0]


def _is_too_large(body: dict[str, Any]) -> bool:
    sides = [body.get(name, 1) for name in ("width", "height", "num_frames")]
    limit = load_settings().catalog("tiny").models["anisora"].constraints.max_volume
    return "num_frames" in body and all(isinstance(side, int) for side in sides) and math.prod(sides) > limit
