"""An image that was uploaded by itself, as its caller sees it. Every key is always present."""

from datetime import datetime

from msgspec import Struct


class ImageView(Struct, frozen=True, kw_only=True):
    """An uploaded image. Requests name it as `{"image": {"ref": ID}}` until it expires; tasks that have begun by then
    keep theirs."""

    id: str
    media_type: str
    bytes: int
    width: int
    height: int
    sha256: str
    expires_at: datetime
