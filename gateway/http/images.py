"""`/images`: images that are uploaded once, and named in many requests. HTTP only."""

from datetime import UTC, datetime
from typing import Final

from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath

from contracts.api.images import ImageView
from contracts.fields import ImageField
from contracts.generation.errors import FieldError, InvalidRequest
from contracts.generation.form import IMAGE_FIELD
from contracts.generation.images import ImageFile, bad_image, widest_limits
from contracts.images import BadImage
from gateway.boards.key_board import Caller
from gateway.http.access import needs
from gateway.http.answers import JsonAnswer
from gateway.http.body import MAX_BODY_BYTES, body_chunks, media_type_of, require_media_type
from gateway.http.form import FORM, is_form, read_form
from gateway.http.lookup import CallerRequest
from gateway.http.media_types import PLAIN_BYTES
from gateway.http.openapi.images import UploadOperation
from gateway.http.openapi.operations import KeyedOperation, problem_responses
from gateway.http.problems import ProblemError, wrong_fields
from gateway.http.queries import require_known_query
from gateway.http.views import root_of
from gateway.images.uploads import IMAGES_PER_CALLER, TooManyImages, Upload
from gateway.services import Services
from ops.artifacts import StorageFailed

_TAGS: Final = ["images"]
_Services = NamedDependency[Services]
_Caller = NamedDependency[Caller]
# What a form may hold beside the image.
TEXT_MAX_BYTES: Final = 1024
RETRY_S: Final = 5.0


@post(
    "/images",
    status_code=201,
    summary="Upload an image",
    tags=_TAGS,
    operation_class=UploadOperation,
    responses={
        201: ResponseSpec(ImageView, description="The image is stored.", generate_examples=False),
        **problem_responses(
            "malformed_body",
            "body_too_large",
            "unsupported_media_type",
            "validation_failed",
            "too_many_images",
            "storage_unavailable",
        ),
    },
    **needs("submit", counts_late=True),
)
async def add_image(request: CallerRequest, services: _Services) -> Response[ImageView]:
    """Stores an image, which any number of requests of the same caller may then name: `{"image": {"ref": ID}}`.

    The body is the file itself, declared with its own type (`image/png`, `image/jpeg`, `image/webp`) or as
    `application/octet-stream`; or it is a form with the file `image`. Uploading the same bytes again gives the same
    `id`, and may extend how long the image stays. Each task has its own copy, and no longer needs the upload.
    """
    limits = widest_limits(services.catalog)
    file = await _sent(request, limits)
    request.auth.take()
    if limits is None:
        message = "image: no model of this gateway takes an image"
        raise wrong_fields(InvalidRequest([FieldError(pointer="/image", code="image_unsupported", message=message)]))
    try:
        upload = await services.uploads.add(request.user.name, file, limits, now=datetime.now(UTC))
    except BadImage as error:
        raise wrong_fields(InvalidRequest([bad_image(error)])) from error
    except TooManyImages as error:
        detail = f"{IMAGES_PER_CALLER} images of yours are stored; remove one first, or wait until some expire"
        raise ProblemError("too_many_images", detail) from error
    except StorageFailed as error:
        raise _unavailable("stored") from error
    return JsonAnswer(_view(upload), status_code=201, headers={"location": f"{root_of(request)}/images/{upload.ref}"})


@get(
    "/images/{image_id:str}",
    summary="Look at an image",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("image_not_found", "storage_unavailable"),
    **needs("read"),
)
async def get_image(services: _Services, caller: _Caller, image_id: FromPath[str]) -> ImageView:
    """The type, the size and the expiry of an image that the key's caller uploaded. `HEAD` says whether it is still
    there."""
    limits = widest_limits(services.catalog)
    try:
        found = (
            None
            if limits is None
            else await services.uploads.find(caller.name, image_id, limits, now=datetime.now(UTC))
        )
    except StorageFailed as error:
        raise _unavailable("read") from error
    if found is None:
        raise _no_such_image()
    return _view(found)


@delete(
    "/images/{image_id:str}",
    status_code=204,
    summary="Remove an image",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("image_not_found", "storage_unavailable"),
    **needs("submit"),
)
async def remove_image(services: _Services, caller: _Caller, image_id: FromPath[str]) -> None:
    """Removes an image: no request can name it any more. Tasks that use it keep their copies."""
    try:
        was_there = await services.uploads.remove(caller.name, image_id, now=datetime.now(UTC))
    except StorageFailed as error:
        raise _unavailable("removed") from error
    if not was_there:
        raise _no_such_image()


async def _sent(request: CallerRequest, limits: ImageField | None) -> ImageFile:
    """The file in the body, read no further than any model takes. Raises HTTPException (413), ProblemError."""
    most, types = (MAX_BODY_BYTES, ()) if limits is None else (limits.max_bytes, limits.media_types)
    if is_form(request):
        form = await read_form(request, image_max_bytes=most, text_max_bytes=TEXT_MAX_BYTES)
        require_media_type(request, (FORM,))
        require_known_query(request.scope)
        fields = form.fields()
        image = fields.pop(IMAGE_FIELD, None)
        if fields or not isinstance(image, ImageFile):
            message = "image: send one file of this name, and nothing else"
            raise wrong_fields(InvalidRequest([FieldError(pointer="/image", code="missing", message=message)]))
        return image
    content = bytearray()
    async for chunk in body_chunks(request, max_bytes=most):
        content += chunk
    require_media_type(request, (*types, FORM, PLAIN_BYTES))
    require_known_query(request.scope)
    return ImageFile(bytes(content), media_type_of(request))


def _view(upload: Upload) -> ImageView:
    image = upload.image
    return ImageView(
        id=upload.ref,
        media_type=image.media_type,
        bytes=image.bytes,
        width=image.width,
        height=image.height,
        sha256=image.sha256,
        expires_at=upload.expires_at,
    )


def _unavailable(what: str) -> ProblemError:
    return ProblemError("storage_unavailable", f"the image cannot be {what} now; try again", retry_after_s=RETRY_S)


def _no_such_image() -> ProblemError:
    return ProblemError("image_not_found", "no image of yours has this reference, or it has expired")


ROUTES: Final = (add_image, get_image, remove_image)
