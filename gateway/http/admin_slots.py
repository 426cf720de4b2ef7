"""`/admin/slots`: the lifting of a quarantine. HTTP only."""

from datetime import UTC, datetime

from litestar import Request, delete
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath

from contracts.lanes import VideoPipelineSlot
from contracts.topology import is_token
from gateway.boards.key_board import Caller
from gateway.http.access import Turn, needs
from gateway.http.audit import audited
from gateway.http.lookup import reachable
from gateway.http.openapi.admin_operations import ChangeOperation
from gateway.http.openapi.operations import problem_responses
from gateway.http.problems import ProblemError
from gateway.services import Services
from ops.nats.shown_slots import NoSuchSlot, NotQuarantined, lift


@delete(
    "/admin/slots/{slot:str}/quarantine",
    status_code=200,
    summary="Lift the quarantine of a slot",
    tags=["admin"],
    operation_class=ChangeOperation,
    responses=problem_responses("slot_not_found", "not_quarantined", "transport_unavailable"),
    **needs("admin"),
)
async def lift_quarantine(
    request: Request[Caller, Turn, State], services: NamedDependency[Services], slot: FromPath[str]
) -> VideoPipelineSlot:
    """The slot's worker loads on it again at once. The answer is the slot as it was, with the reason for the quarantine
    in `detail`.

    First find the process that holds the card's memory (`nvidia-smi`), and end it. Otherwise the next release cannot
    be proven either. `warmlane slots lift` does the same.
    """
    if not is_token(slot):
        raise ProblemError("slot_not_found", "no slot has such a name; GET /admin/lanes lists them")
    try:
        was = await reachable(lift(services.link, slot, now=datetime.now(UTC)))
    except NoSuchSlot as error:
        raise ProblemError("slot_not_found", f"no worker has shown a slot {slot}") from error
    except NotQuarantined as error:
        raise ProblemError("not_quarantined", str(error)) from error
    audited(request, "quarantine_lifted", on=slot, detail=was.detail)
    return was
