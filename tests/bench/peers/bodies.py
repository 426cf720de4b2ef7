"""What a client sends to a peer that stands on FastAPI, and is told by it."""

from pydantic import BaseModel


class Body(BaseModel):
    """What a client sends."""

    model: str
    prompt: str
    seed: int


class Accepted(BaseModel):
    """What it is told."""

    id: str
    status: str
