"""The way to the API server: KUBECONFIG, or the service account of the pod that this process runs in."""

import os
from collections.abc import Mapping
from typing import Final

import httpx2
import yaml
from lightkube import AsyncClient, KubeConfig
from lightkube.config.kubeconfig import SingleConfig
from lightkube.core.exceptions import ConfigError

DEFAULT_FILE: Final = "~/.kube/config"
CONNECT_S: Final = 5.0
ANSWER_S: Final = 20.0


class NoEntrance(Exception):
    """No configuration names the API server, or the configuration cannot be read. The text says what to do."""


def entrance(environment: Mapping[str, str] = os.environ) -> SingleConfig:
    """The configuration from KUBECONFIG where it is set, else from the service account of this pod, else from
    ~/.kube/config. Raises NoEntrance."""
    named = environment.get("KUBECONFIG")
    try:
        if named:
            found = KubeConfig.from_file(named).get()
        elif "KUBERNETES_SERVICE_HOST" in environment:
            found = KubeConfig.from_service_account().get()
        else:
            found = KubeConfig.from_file(DEFAULT_FILE).get()
    except (ConfigError, OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        where = named or ("its service account" if "KUBERNETES_SERVICE_HOST" in environment else DEFAULT_FILE)
        raise NoEntrance(
            f"cannot reach a Kubernetes cluster with {where}: {error}; set KUBECONFIG to a file with one "
            "current context, or run it in a pod whose service account is mounted"
        ) from error
    assert isinstance(found, SingleConfig)
    return found


def client_for(config: SingleConfig, namespace: str | None) -> AsyncClient:
    """A client for *namespace*, or for the one that *config* names. The caller has to close it."""
    timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
    return AsyncClient(config, namespace=namespace, timeout=timeout, field_manager="warmlane-supervisor", lazy=False)
