"""What a client sends to a peer that uses FastAPI, and the peer's answer."""

from pydantic import BaseModel


class Body(BaseModel):
    """What a client sends."""

    model: str
    prompt: str
    seed: int


class Accepted(BaseModel):
    """The answer."""

    id: str
    status: str
