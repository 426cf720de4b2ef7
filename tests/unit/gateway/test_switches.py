"""What the gateway makes of the operator's switches."""

import pytest
from structlog.testing import capture_logs

from gateway.boards.switches import Switches
from ops.nats.bucket import Versioned
from ops.nats.buckets import SWITCHES
from ops.nats.entry import Entry
from tests.kit.records import after


def control(value: bytes | None, revision: int, key: str = "lanes.anisora") -> Entry:
    return Entry(key, value, revision, after(revision))


@pytest.mark.parametrize(
    ("entries", "mode", "ignored"),
    [
        pytest.param([], "auto", [], id="never-set"),
        pytest.param([control(b"degraded", 1)], "degraded", [], id="degraded"),
        pytest.param([control(b"degraded\n", 1)], "degraded", [], id="with-a-newline"),
        pytest.param([control(b"degraded", 1), control(b"auto", 2)], "auto", [], id="and-back"),
        pytest.param([control(b"degraded", 1), control(None, 2)], "auto", [], id="deleted"),
        pytest.param([control(b"degraded", 1), control(b"auto", 1)], "degraded", [], id="a-revision-twice"),
        pytest.param([control(b"degraded", 1), control(b"Auto", 2)], "degraded", ["Auto"], id="the-last-usable-stays"),
        pytest.param([control(b"off", 1)], "auto", ["off"], id="unusable"),
        pytest.param([control(b"\xff" * 99, 1)], "auto", ["\ufffd" * 64], id="not-text"),
        pytest.param([control(b"off", 1), control(b"degraded", 2)], "degraded", [], id="mended"),
        pytest.param([control(b"degraded", 1, "lane.anisora")], "auto", ["degraded"], id="another-key"),
        pytest.param([control(b"x", 1, "y"), control(None, 2, "y")], "auto", [], id="another-key-is-gone"),
    ],
)
def test_the_operators_switch(entries: list[Entry], mode: str, ignored: list[str]) -> None:
    switches = Switches()
    with capture_logs() as logged:
        for entry in entries:
            switches.on_entry(Versioned(SWITCHES, entry))
    assert switches.mode("anisora").mode == mode
    assert [entry.value for entry in switches.ignored(["anisora", "phr00t"])] == ignored
    if ignored:
        assert "control_ignored" in [line["event"] for line in logged]


def switch(model: str, value: bytes | None, revision: int) -> Entry:
    return Entry(f"lanes.{model}", value, revision, after(revision))


def test_a_switch_that_was_read_hides_no_older_one_of_another_model() -> None:
    """The board has two sources: the answer to the caller that set a switch, and the watch, which delivers the other
    later."""
    switches = Switches()
    switches.on_entry(Versioned(SWITCHES, switch("phr00t", b"auto", 9)))
    for entry in (switch("anisora", b"degraded", 8), switch("phr00t", b"degraded", 7), switch("phr00t", b"auto", 9)):
        switches.on_entry(Versioned(SWITCHES, entry))
    assert (switches.mode("anisora").mode, switches.mode("phr00t").mode) == ("degraded", "auto")
