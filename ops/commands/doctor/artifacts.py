"""What `warmlane doctor` says of a bucket. Changes nothing: whether it can be written shows when a process starts."""

import asyncio
from typing import Final

from ops.artifact_place import BucketPlace, in_bucket
from ops.artifacts import StorageFailed
from ops.commands.doctor.findings import Finding

# No object of ours has this name: that it is not there is an answer, too.
ASKED: Final = "probe-of-doctor"


def bucket(place: BucketPlace) -> Finding:
    """Whether the bucket answers, with these credentials. It is asked for one object."""

    async def ask() -> None:
        await in_bucket(place).size(ASKED)

    try:
        asyncio.run(ask())
    except StorageFailed as error:
        advice = "endpoint, region and keys are taken from AWS_*: docs/operate/s3.md"
        return Finding(what="artifacts", level="missing", found=f"{place}: {error}", advice=advice)
    return Finding(what="artifacts", level="ok", found=f"{place} answers")
