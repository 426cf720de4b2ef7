"""The table of every problem with which the gateway may answer, by its code."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

TYPE_PREFIX: Final = "urn:warmlane:problem:"


class ProblemKind(Struct, frozen=True):
    """One row of the table. *detail* is an example of what a client reads, for the documentation."""

    status: int
    title: str
    detail: str


PROBLEMS: Final[Mapping[str, ProblemKind]] = {
    "malformed_body": ProblemKind(
        400,
        "The body cannot be read",
        "Not valid JSON at line 1, column 12: Expecting ',' delimiter. Send one JSON object in UTF-8.",
    ),
    "invalid_query": ProblemKind(
        400,
        "A query parameter or a header cannot be used",
        "wait: expected a number from 0 to 60.",
    ),
    "unauthorized": ProblemKind(
        401,
        "The request carries no valid API key",
        "Send the header Authorization: Bearer KEY. An operator makes a key with `warmlane keys add`.",
    ),
    "forbidden": ProblemKind(
        403,
        "The API key does not allow this",
        "This needs a key with the scope submit; yours has read.",
    ),
    "priority_forbidden": ProblemKind(
        403,
        "The API key may not name this class",
        "This key may name standard at most. Leave priority out, or name a lower class.",
    ),
    "foreign_host": ProblemKind(
        403,
        "Without API keys the gateway answers to this machine's own names only",
        "Call it as 127.0.0.1 or localhost, or ask an operator for an API key.",
    ),
    "cross_origin_refused": ProblemKind(
        403,
        "A page of this origin may not do this",
        "Pages of 'https://example.com' may not call this gateway; an operator allows them with --cors-origin.",
    ),
    "malformed_request": ProblemKind(
        400, "The bytes are not an HTTP request", "This is not an HTTP/1.1 request. The connection is closed."
    ),
    "not_found": ProblemKind(404, "There is nothing at this path", "See /docs for the paths that exist."),
    "model_not_found": ProblemKind(
        404, "No model has this name", "The models are anisora and phr00t. GET /settings lists them with their aliases."
    ),
    "task_not_found": ProblemKind(
        404,
        "No task has this id",
        "It was never accepted here, or its record expired. List the tasks with GET /tasks.",
    ),
    "webhook_not_found": ProblemKind(
        404, "No webhook has this id", "It was removed, or is another caller's. GET /webhooks lists yours."
    ),
    "delivery_not_found": ProblemKind(
        404,
        "No delivery has this id",
        "It was never made, or it is older than what is kept. GET /webhooks/deliveries lists yours.",
    ),
    "video_not_ready": ProblemKind(
        404,
        "The video is not finished yet",
        "The task is processing. Wait for it with GET /tasks/{id}?wait=60.",
    ),
    "video_failed": ProblemKind(
        404,
        "The task failed and has no video",
        "The task failed: worker_lost. Send the request again.",
    ),
    "slot_not_found": ProblemKind(
        404, "No worker has shown a slot of this name", "GET /admin/lanes lists the slots that workers show."
    ),
    "key_not_found": ProblemKind(404, "No API key has this id", "GET /admin/keys lists the keys with their ids."),
    "no_thumbnail": ProblemKind(
        404,
        "No frame of the video was kept",
        "No frame of this video was kept; the video is at links.video of the task.",
    ),
    "method_not_allowed": ProblemKind(
        405, "The path exists, but not for this method", "The header Allow lists the methods of this path."
    ),
    "request_timeout": ProblemKind(
        408,
        "The request came too slowly",
        "The request head was not complete within 10 s. The connection is closed; send the request again.",
    ),
    "not_quarantined": ProblemKind(
        409, "The slot is not quarantined", "Slot cpu-2 is resident, not quarantined: there is nothing to lift."
    ),
    "task_not_ended": ProblemKind(
        409,
        "The task has not ended yet",
        "The task is processing. Wait for it, or cancel it with DELETE /tasks/{id} first.",
    ),
    "image_not_found": ProblemKind(
        404,
        "No image has this reference",
        "It was removed, has expired, or is another caller's. POST /images gives one.",
    ),
    "image_expired": ProblemKind(
        410, "The image of the request was removed", "Send the request itself again, with its image: POST /generate."
    ),
    "video_expired": ProblemKind(
        410, "The video was removed", "Videos are kept for a limited time. Send the request again, with the same seed."
    ),
    "precondition_failed": ProblemKind(
        412,
        "The resource has changed, or its tag does not match",
        'It is now at "9"; GET it and decide again.',
    ),
    "body_too_large": ProblemKind(
        413, "The body is too large", "Send less. Of an image, GET /settings names the limits of each model."
    ),
    "unsupported_media_type": ProblemKind(
        415, "This path does not take the declared media type", "Send it as application/json."
    ),
    "range_not_satisfiable": ProblemKind(
        416,
        "The range lies beyond the end of the file",
        "The header Content-Range says how many bytes the file has.",
    ),
    "validation_failed": ProblemKind(
        422, "The request has fields that are wrong", "2 fields are wrong; errors lists each of them."
    ),
    "idempotency_key_reused": ProblemKind(
        422,
        "The Idempotency-Key was used for another request",
        "Use a new key for a new request; the same key is for sending the same request again.",
    ),
    "rate_limited": ProblemKind(
        429,
        "The API key made too many requests",
        "It may make 500 requests in any 10 s. Try again after the time in Retry-After.",
    ),
    "too_many_tasks": ProblemKind(
        429,
        "The caller has as many waiting or running tasks as its API key allows",
        "20 tasks of yours wait, and this key allows 20. Try again when one has ended, or cancel one.",
    ),
    "too_many_webhooks": ProblemKind(
        429, "The caller has the maximum number of webhooks", "20 endpoints are registered; remove one first."
    ),
    "too_many_images": ProblemKind(
        429,
        "The caller has the maximum number of images",
        "200 images of yours are stored; remove one first, or wait until some expire.",
    ),
    "too_many_fetches": ProblemKind(
        429,
        "The gateway is fetching as many images as it may",
        "Images for other requests are being fetched. Try again after the time in Retry-After.",
    ),
    "too_many_streams": ProblemKind(
        429,
        "Too many event streams are open",
        "Close streams of tasks that have ended, or wait with GET /tasks/{id}?wait=60.",
    ),
    "too_many_waits": ProblemKind(
        429,
        "Too many requests wait for the end of a task",
        "1000 requests wait for a task already; ask without wait, or follow the tasks with GET /tasks/events.",
    ),
    "headers_too_large": ProblemKind(
        431, "The request head is too large", "The request head has more than 65536 bytes. The connection is closed."
    ),
    "generation_failed": ProblemKind(
        500,
        "The task that the request waited for failed",
        "The task failed: out_of_memory. The worker's log says more; the same request makes a new task.",
    ),
    "internal_error": ProblemKind(
        500,
        "The gateway failed",
        "The cause is in the gateway's log. Try again; report it to the operator if it persists.",
    ),
    "queue_overloaded": ProblemKind(
        503,
        "The workers have more work than they can start in time",
        "25 requests are waiting already. Try again after the time in Retry-After.",
    ),
    "starting": ProblemKind(
        503,
        "The gateway does not serve yet",
        "GET /readyz says what it waits for. Try again after the time in Retry-After.",
    ),
    "too_many_connections": ProblemKind(
        503,
        "The gateway has too many connections",
        "Try again after the time in Retry-After, and keep fewer connections open.",
    ),
    "storage_full": ProblemKind(
        503,
        "The queue has no room for more requests",
        "Nothing of the request was stored. Try again after the time in Retry-After.",
    ),
    "storage_unavailable": ProblemKind(
        503,
        "The artifact store cannot be used",
        "The file could not be stored or read. Try again.",
    ),
    "webhook_secret_unavailable": ProblemKind(
        503,
        "The secret of the webhook cannot be read",
        "It was sealed with a key that the gateway does not have. Rotate the secret, or ask an operator.",
    ),
    "transport_unavailable": ProblemKind(
        503,
        "The queue did not answer",
        "Whether the request was accepted is unknown. Retry with the same Idempotency-Key.",
    ),
}
