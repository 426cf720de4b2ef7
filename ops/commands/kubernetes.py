"""What `warmlane supervisor --provider kubernetes` needs: its options, and access to the cluster. Only this provider
needs the packages of the extra `kubernetes`, so they are imported only when it is chosen."""

import asyncio
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from contracts.settings import Windows
from ops.commands.variables import option_or_variable
from ops.lanes.quota import Quota
from ops.nats.link import NatsLink
from ops.telemetry.probes import ProcessHealth, judged_by

if TYPE_CHECKING:
    from lightkube.config.kubeconfig import SingleConfig

_provider_option = option_or_variable(
    "--provider",
    envvar="WARMLANE_PROVIDER",
    type=click.Choice(["process", "kubernetes"]),
    default="process",
    help="Where lanes come from: processes of this machine, or the Deployments of the chart. kubernetes asks the API "
    "server that KUBECONFIG names, or that of the pod.",
)
_namespace_option = option_or_variable(
    "--namespace",
    envvar="WARMLANE_NAMESPACE",
    help="kubernetes: the namespace of the lanes. [default: that of the kubeconfig, or of the pod]",
)
_release_option = option_or_variable(
    "--release",
    envvar="WARMLANE_RELEASE",
    help="kubernetes: the Helm release of the lanes. [default: any in the namespace]",
)
_deletion_cost_option = option_or_variable(
    "--deletion-cost",
    envvar="WARMLANE_DELETION_COST",
    is_flag=True,
    help="kubernetes: keep the annotation controller.kubernetes.io/pod-deletion-cost of the lanes' pods, so that a "
    "scale-in takes an idle lane first. It needs the right to patch pods.",
)


def provider_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--provider`, `--namespace`, `--release` and `--deletion-cost`."""

    @_provider_option
    @_namespace_option
    @_release_option
    @_deletion_cost_option
    @wraps(function)
    def with_options(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return with_options


class LanesOnKubernetes:
    """The lanes of one namespace, of one *release* or of any. *keeps_costs*: keeps each pod's deletion cost, too."""

    def __init__(
        self, config: "SingleConfig", namespace: str | None, release: str | None, *, keeps_costs: bool
    ) -> None:
        self._config, self._namespace, self._release = config, namespace, release
        self._keeps_costs = keeps_costs

    async def run(
        self, link: NatsLink, wanted: Mapping[str, int] | None, quota: Quota, windows: Windows, stop: asyncio.Event
    ) -> None:
        """Supervises them until *stop*."""
        from ops.lanes.kubernetes.cluster import Cluster
        from ops.lanes.kubernetes.cost_keeper import CostKeeper
        from ops.lanes.kubernetes.entrance import client_for
        from ops.lanes.kubernetes.supervisor import ClusterSupervisor

        news = asyncio.Event()
        client = client_for(self._config, self._namespace)
        cluster = Cluster(client, release=self._release, on_change=news.set)

        costs = CostKeeper(cluster) if self._keeps_costs else None

        def judge() -> ProcessHealth:
            if not link.connection.is_connected:
                return ProcessHealth(False, "supervises", "it is not connected to nats-server")
            why = f"it cannot see the cluster: {cluster.blind}" if cluster.blind else ""
            return ProcessHealth(not why, "supervises", why)

        try:
            with judged_by(judge):
                await ClusterSupervisor(link, cluster, wanted, quota, windows, news=news, costs=costs).run(stop)
        finally:
            await client.close()


def lanes_in(namespace: str | None, release: str | None, *, keeps_costs: bool) -> LanesOnKubernetes:
    """Raises click.ClickException if nothing says how to reach a cluster, or the extra `kubernetes` is missing."""
    try:
        from ops.lanes.kubernetes.entrance import NoEntrance, entrance
    except ImportError as error:
        raise click.ClickException(
            f"--provider kubernetes needs the extra kubernetes ({error}): pip install 'warmlane[kubernetes]', "
            "from a checkout -e '.[kubernetes]'"
        ) from error
    try:
        return LanesOnKubernetes(entrance(), namespace, release, keeps_costs=keeps_costs)
    except NoEntrance as error:
        raise click.ClickException(str(error)) from error
