import resource

import httpx
import pytest

from gateway.server.connections import Connections, http_config
from gateway.server.limits import RESERVED_FDS, Limits, Overdue, Waits, connections_max, overdue, raise_fd_limit

LIMITS = Limits(head_s=10, body_idle_s=10, body_s=60, unread_s=30, linger_s=2)


@pytest.mark.parametrize(
    ("waits", "now_s", "expected"),
    [
        pytest.param(Waits(), 1e9, None, id="nothing"),
        pytest.param(Waits(leaving_s=100), 101.9, None, id="1-may-still-read"),
        pytest.param(Waits(leaving_s=100), 102, "leaving", id="1"),
        pytest.param(Waits(leaving_s=100, head_s=0, unread_s=0), 101, None, id="1-nothing-else-counts"),
        pytest.param(Waits(unread_s=100), 129.9, None, id="2-in-time"),
        pytest.param(Waits(unread_s=100), 130, "unread", id="2"),
        pytest.param(Waits(unread_s=100, head_s=100), 130, "unread", id="2-before-3"),
        pytest.param(Waits(head_s=100), 109.9, None, id="3-in-time"),
        pytest.param(Waits(head_s=100), 110, "head", id="3"),
        pytest.param(Waits(body_s=100, body_moved_s=105), 114.9, None, id="4-moves"),
        pytest.param(Waits(body_s=100, body_moved_s=105), 115, "body", id="4-stopped"),
        pytest.param(Waits(body_s=100, body_moved_s=159), 159.9, None, id="4-long-but-in-time"),
        pytest.param(Waits(body_s=100, body_moved_s=159), 160, "body", id="4-too-long"),
    ],
)
def test_overdue(waits: Waits, now_s: float, expected: Overdue | None) -> None:
    assert overdue(waits, LIMITS, now_s) == expected


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        pytest.param(Waits(leaving_s=100), "leaving", id="leaving"),
        pytest.param(Waits(unread_s=100), "unread", id="unread"),
        pytest.param(Waits(head_s=100), "head", id="head"),
        pytest.param(Waits(body_s=100, body_moved_s=1e9), "body", id="body"),
        pytest.param(Waits(body_s=100, body_moved_s=100), "body", id="body-idle"),
    ],
)
def test_a_time_in_which_the_gateway_stood_still_is_not_the_clients(waits: Waits, expected: Overdue) -> None:
    waits.excuse(1_000)
    assert overdue(waits, LIMITS, 1_101) is None
    assert overdue(waits, LIMITS, 1_161) == expected


@pytest.mark.parametrize(
    ("fds", "expected"), [(100_000, 4096), (4096 + RESERVED_FDS, 4096), (1024, 1024 - RESERVED_FDS), (10, 1)]
)
def test_connections_max(fds: int, expected: int) -> None:
    assert connections_max(4096, fds) == expected


def test_the_limit_of_file_descriptors_is_raised_as_far_as_it_goes() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        assert raise_fd_limit(2_000) == min(2_000 + RESERVED_FDS, before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(2_000 + RESERVED_FDS, before[1])
        assert raise_fd_limit(100) == min(2_000 + RESERVED_FDS, before[1])  # never lowered
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_look_is_fine_enough_for_every_bound() -> None:
    assert Limits().look_every_s == 0.5
    assert Limits(unread_s=0.2).look_every_s == 0.05


def test_python_clients_let_idle_connections_go_first() -> None:
    """Otherwise a request could use a connection that the gateway is closing."""
    idle_s = httpx.Limits().keepalive_expiry
    assert idle_s is not None
    assert idle_s < http_config(None, Connections(Limits())).timeout_keep_alive
