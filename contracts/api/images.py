"""An image that was uploaded on its own, as its caller sees it. Every key is always present."""

from datetime import datetime

from msgspec import Struct


class ImageView(Struct, frozen=True, kw_only=True):
    """An uploaded image. Requests name it as `{"image": {"ref": ID}}` until it expires; tasks that were accepted by
    then keep their own copy."""

    id: str
    media_type: str
    bytes: int
    width: int
    height: int
    sha256: str
    expires_at: datetime
