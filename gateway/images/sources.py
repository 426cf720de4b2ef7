"""Gets the image of a request that only names it: from the uploads of its caller, or from a host."""

import asyncio
from datetime import UTC, datetime

from contracts.generation.errors import FieldError, InvalidRequest
from contracts.generation.images import ImageByAddress, ImageByReference, ImageFile, no_such_image
from contracts.generation.request import AcceptedRequest, with_image
from contracts.settings import Catalog
from gateway.images.fetching import ImageFetcher, NotFetched
from gateway.images.uploads import Uploads


class ImageSources:
    """Completes requests before a task is made of them, so that a task holds its image and needs no source again."""

    def __init__(self, *, uploads: Uploads, fetcher: ImageFetcher, catalog: Catalog) -> None:
        self._uploads, self._fetcher, self._catalog = uploads, fetcher, catalog

    async def complete(self, request: AcceptedRequest, caller: str) -> AcceptedRequest:
        """*request* of *caller* with its image, judged by the limits of its model. A request that has its image is
        returned unchanged.

        Raises InvalidRequest where the image is not there or not within the limits; TooManyFetches, StorageFailed.
        """
        match request.image_source:
            case None:
                return request
            case ImageByReference(ref):
                content = await self._uploads.content(caller, ref, now=datetime.now(UTC))
                if content is None:
                    raise InvalidRequest([no_such_image(ref)])
                file = ImageFile(content)
            case ImageByAddress(url):
                limits = self._catalog.models[request.model].constraints.image
                try:
                    file = await self._fetcher.fetch(url, caller=caller, limits=limits)
                except NotFetched as error:
                    wrong = FieldError(pointer="/image/url", code=error.code, message=f"image/url: {error}")
                    raise InvalidRequest([wrong]) from error
        # in a thread: hashing the image takes milliseconds
        return await asyncio.to_thread(with_image, request, file, self._catalog)
