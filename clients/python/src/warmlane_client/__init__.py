"""A client of a Warmlane gateway: `Client` for threads, `AsyncClient` for asyncio.

    with Client("http://127.0.0.1:8000") as client:
        task = client.submit(VideoRequest(model="anisora", prompt="a red fox in fresh snow"))
        task = client.wait(task, on_change=print)
        client.download(task, Path("fox.mp4"))

Names that are not exported here may change without notice.
"""

from warmlane_client.asynchronous import AsyncClient
from warmlane_client.core.effects import Call, Reply
from warmlane_client.core.following import Wait
from warmlane_client.core.retries import Patience
from warmlane_client.errors import (
    AccessDenied,
    DownloadDamaged,
    ForeignAnswer,
    GatewayBusy,
    GatewayUnreachable,
    Misconfigured,
    NotAnAddress,
    NotThere,
    NoVideo,
    RequestRefused,
    WaitTimedOut,
    WarmlaneError,
    WrongRequest,
)
from warmlane_client.models import (
    PlaceInQueue,
    StepsMade,
    Task,
    TaskList,
    VideoMade,
    VideoRequest,
    WhyFailed,
    image_uri,
)
from warmlane_client.part import PartInUse
from warmlane_client.problem import ProblemDocument, WrongField
from warmlane_client.sync import Client

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "Call",
    "Client",
    "DownloadDamaged",
    "ForeignAnswer",
    "GatewayBusy",
    "GatewayUnreachable",
    "Misconfigured",
    "NoVideo",
    "NotAnAddress",
    "NotThere",
    "PartInUse",
    "Patience",
    "PlaceInQueue",
    "ProblemDocument",
    "Reply",
    "RequestRefused",
    "StepsMade",
    "Task",
    "TaskList",
    "VideoMade",
    "VideoRequest",
    "Wait",
    "WaitTimedOut",
    "WarmlaneError",
    "WhyFailed",
    "WrongField",
    "WrongRequest",
    "image_uri",
]
