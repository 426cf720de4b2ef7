"""A batch: up to BATCH_MAX requests in one body, all of which are accepted, or none. Pure."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from contracts.generation.errors import FieldError, InvalidRequest, missing, refused, wrong_type
from contracts.generation.request import AcceptedRequest, validate
from contracts.settings import Catalog

BATCH_MAX: Final = 20
REQUESTS_FIELD: Final = "requests"


def validate_batch(body: Mapping[str, Any], catalog: Catalog) -> tuple[AcceptedRequest, ...]:
    """The requests in *body*, each as `validate` returns it.

    The fingerprint of each covers the whole batch and its place there: a client that repeats an Idempotency-Key has to
    repeat the whole batch, in its order. Raises InvalidRequest with every error of every request; pointers begin with
    the place of the request, as in `/requests/3/steps`.
    """
    errors: list[FieldError] = []
    accepted: list[AcceptedRequest] = []
    for place, each in enumerate(_items(body, errors)):
        if not isinstance(each, dict):
            errors.append(wrong_type(f"{REQUESTS_FIELD}/{place}", "object", each))
            continue
        try:
            accepted.append(validate(each, catalog))
        except InvalidRequest as wrong:
            errors += wrong_at(place, wrong).errors
    if errors:
        raise InvalidRequest(errors)
    whole = hashlib.sha256("".join(each.fingerprint for each in accepted).encode()).hexdigest()
    return tuple(
        replace(each, fingerprint=hashlib.sha256(f"{whole}/{place}".encode()).hexdigest())
        for place, each in enumerate(accepted)
    )


def wrong_at(place: int, wrong: InvalidRequest) -> InvalidRequest:
    """*wrong* with the pointers and messages of the request at *place* of a batch."""
    return InvalidRequest(
        [
            replace(
                error,
                pointer=f"/{REQUESTS_FIELD}/{place}{error.pointer}",
                message=f"{REQUESTS_FIELD}/{place}: {error.message}",
            )
            for error in wrong.errors
        ]
    )


def _items(body: Mapping[str, Any], errors: list[FieldError]) -> list[Any]:
    requests = body.get(REQUESTS_FIELD)
    if REQUESTS_FIELD not in body:
        errors.append(missing(REQUESTS_FIELD, f"an array of 1 to {BATCH_MAX} requests"))
    elif not isinstance(requests, list):
        errors.append(wrong_type(REQUESTS_FIELD, f"an array of 1 to {BATCH_MAX} requests", requests))
    elif not 1 <= len(requests) <= BATCH_MAX:
        error = refused(REQUESTS_FIELD, "out_of_range", {"minimum": 1, "maximum": BATCH_MAX}, len(requests))
        errors.append(error)
    if body.keys() - {REQUESTS_FIELD}:
        what = f"the only field of a batch is {REQUESTS_FIELD}; priority, labels and the like stand in each request"
        errors.append(FieldError(pointer="", code="unknown_field", message=what, expected=[REQUESTS_FIELD]))
    return requests if isinstance(requests, list) and len(requests) <= BATCH_MAX else []
