"""Small real things for the unit tests: catalogs, tasks, images."""

import base64
import io
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace
from PIL import Image

from contracts.settings import Catalog, load_settings
from contracts.tasks import GenerationParameters, GenerationTask, TaskStatus

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def catalog(profile: str = "tiny") -> Catalog:
    return load_settings().catalog(profile)


def task(**changes: Any) -> GenerationTask:
    pending = GenerationTask(
        id="019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55",
        model="anisora",
        parameters=GenerationParameters(
            prompt="a fox, 狐",
            negative_prompt="",
            image=None,
            width=96,
            height=64,
            num_frames=17,
            fps=16,
            seed=2**32 - 1,
            steps=8,
            cfg=1.0,
        ),
        request_sha256="ab" * 32,
        status=TaskStatus.PENDING,
        route="lane",
        epoch=1,
        created_at=NOW,
        queued_at=NOW,
        deadline_at=NOW + timedelta(seconds=30),
    )
    return replace(pending, **changes)


def picture(kind: str, size: tuple[int, int] = (33, 21), *, mode: str = "RGB", **options: Any) -> bytes:
    content = io.BytesIO()
    image = Image.new(mode, size)
    # not one flat colour, so that every encoder has something to write
    image.putpixel((0, 0), (255,) * len(image.getbands()))
    image.save(content, kind, **options)
    return content.getvalue()


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
