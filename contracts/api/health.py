"""Whether the gateway lives, and who would take a request now."""

from msgspec import Struct


class Health(Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: str


class ModelReadiness(Struct, frozen=True, kw_only=True):
    """Whether somebody would take a request for the model now.

    *warm*: one of its lanes is, so that it is taken at once. Otherwise the degraded worker takes it in its turn.
    *lanes* is what its lanes are doing.
    """

    ready: bool
    warm: bool
    lanes: list[str]


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether requests can be accepted: the queue answers, and there is somebody for every model.

    *degraded_worker*: one serves the queue of the models that have no warm lane.
    *troubles* says in words what else is wrong with the gateway or the queue; not ready where requests could not end.
    """

    ready: bool
    nats: bool
    degraded_worker: bool
    models: dict[str, ModelReadiness]
    troubles: list[str]
