"""`DELETE /tasks/{id}/record`: forgets a task that has ended. HTTP only."""

from litestar import delete
from litestar.di import NamedDependency
from litestar.params import FromPath

from gateway.http.access import needs
from gateway.http.conditions import conditions_of, require_to_change
from gateway.http.lookup import CallerRequest, find, no_such_task, reachable
from gateway.http.openapi.forgetting import ForgetOperation
from gateway.http.openapi.operations import problem_responses
from gateway.http.problems import ProblemError
from gateway.placing.forgetting import NotEnded, forget
from gateway.services import Services


@delete(
    "/tasks/{task_id:str}/record",
    status_code=204,
    summary="Forget a task that has ended",
    tags=["tasks"],
    operation_class=ForgetOperation,
    responses=problem_responses("task_not_found", "task_not_ended", "precondition_failed", "transport_unavailable"),
    **needs("submit"),
)
async def forget_task(request: CallerRequest, services: NamedDependency[Services], task_id: FromPath[str]) -> None:
    """Permanently removes a task that has ended: its record with its history, its video, thumbnail and image, and the
    deliveries of its webhooks, including those still to be sent. From then on the task is unknown (404).

    A backup that was taken before still holds the task. Logs and traces keep its id, but not its prompt. Counts and
    times that name no task stay. If the answer is lost, send the request again: `404` says that the task is gone."""
    await find(services, request.user, task_id)
    conditions = conditions_of(request)
    try:
        was_there = await reachable(
            forget(
                task_id,
                link=services.link,
                tasks=services.tasks,
                artifacts=services.artifacts,
                deliveries=services.webhooks.deliveries,
                require=lambda revision: require_to_change(conditions, revision),
            )
        )
    except NotEnded as error:
        raise ProblemError("task_not_ended", f"the task is {error}; wait for it, or cancel it first") from error
    services.texts.forget({task_id})
    if not was_there:
        raise no_such_task()
