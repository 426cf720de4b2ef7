"""What `warmlane doctor` reports about a bucket. It changes nothing: processes test writing when they start."""

import asyncio
from typing import Final

from ops.artifact_place import BucketPlace, in_bucket
from ops.artifacts import StorageFailed
from ops.commands.doctor.findings import Finding

# No object of ours has this name: "not found" is an answer too.
ASKED: Final = "probe-of-doctor"


def bucket(place: BucketPlace) -> Finding:
    """Whether the bucket answers with these credentials when it is asked for the size of one object."""

    async def ask() -> None:
        await in_bucket(place).size(ASKED)

    try:
        asyncio.run(ask())
    except StorageFailed as error:
        advice = "endpoint, region and keys are taken from AWS_*: docs/operate/s3.md"
        return Finding(what="artifacts", level="missing", found=f"{place}: {error}", advice=advice)
    return Finding(what="artifacts", level="ok", found=f"{place} answers")
