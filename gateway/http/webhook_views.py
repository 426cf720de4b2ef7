"""What callers see of webhooks: the structs of `contracts.api.webhooks`, filled in."""

from datetime import datetime

from contracts.api.webhooks import DeliveryView, EndpointView
from contracts.webhooks import WebhookDelivery, WebhookEndpoint, requests_id


def endpoint_view(endpoint: WebhookEndpoint, now: datetime) -> EndpointView:
    """*endpoint* as its caller may see it: without its stored secrets."""
    return EndpointView(
        id=endpoint.id,
        url=endpoint.url or "",
        events=endpoint.events,
        caller=endpoint.caller,
        made_at=endpoint.made_at,
        secrets=len(endpoint.signing(now)),
        disabled_at=endpoint.disabled_at,
        disabled_why=endpoint.disabled_why or None,
    )


def delivery_view(delivery: WebhookDelivery) -> DeliveryView:
    """*delivery* as its caller may see it."""
    return DeliveryView(
        id=delivery.id,
        endpoint=None if delivery.endpoint == requests_id(delivery.caller) else delivery.endpoint,
        url=delivery.url,
        caller=delivery.caller,
        task_id=delivery.task_id,
        event=delivery.event,
        status=delivery.status,
        attempts=delivery.attempts,
        made_at=delivery.made_at,
        next_at=delivery.next_at,
        ended_at=delivery.ended_at,
        last=delivery.last,
    )
