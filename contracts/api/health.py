"""Whether the gateway lives, and whether a worker would take a request now."""

from msgspec import Struct


class Health(Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: str


class ModelReadiness(Struct, frozen=True, kw_only=True):
    """Whether a worker would take a request for the model now.

    *warm*: one of its lanes is warm and takes the request at once. Otherwise the degraded worker takes it in its turn.
    *lanes* holds the states of its lanes.
    """

    ready: bool
    warm: bool
    lanes: list[str]


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether requests can be accepted: nats-server answers, and every model has a worker.

    *degraded_worker*: a worker serves the queue of the models that have no warm lane.
    *troubles* says in words what else is wrong with the gateway or nats-server; *ready* is false if requests could not
    end.
    """

    ready: bool
    nats: bool
    degraded_worker: bool
    models: dict[str, ModelReadiness]
    troubles: list[str]
