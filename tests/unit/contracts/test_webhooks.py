"""The address of a receiver is read in one way, and nothing of it is guessed."""

import pytest

from contracts.generation.checks import webhook_events
from contracts.generation.errors import FieldError
from contracts.urls import BadUrl, NamedUrl, parse_url
from contracts.webhooks import delivery_id, requests_id


@pytest.mark.parametrize(
    ("text", "expected", "authority"),
    [
        ("https://example.com", NamedUrl("https", "example.com", 443, "/"), "example.com"),
        (
            "HTTPS://Example.COM:443/a?c=d",
            NamedUrl("https", "example.com", 443, "/a?c=d"),
            "example.com",
        ),
        ("http://127.0.0.1:9000/hook", NamedUrl("http", "127.0.0.1", 9000, "/hook"), "127.0.0.1:9000"),
        ("https://[2606:4700::1]:8443/", NamedUrl("https", "2606:4700::1", 8443, "/"), "[2606:4700::1]:8443"),
        ("https://example.com?token=1", NamedUrl("https", "example.com", 443, "/?token=1"), "example.com"),
    ],
)
def test_an_address_is_read(text: str, expected: NamedUrl, authority: str) -> None:
    assert parse_url(text) == expected
    assert parse_url(text).authority == authority


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/hook",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://user:secret@example.com/",
        "https://example.com@10.0.0.1/",
        "https://example.com/#fragment",
        "https://example.com\\@10.0.0.1/",
        "https://example.com/ a",
        "https://example.com/\r\nX-Evil: 1",
        "https://exämple.com/",
        "https://example..com/",
        "https://" + "a" * 64 + ".com/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.0.0.1./",
        "https://[::1%25eth0]/",
        "https://[fe80::1%eth0]/",
        "https://[nonsense]/",
        "https://example.com/" + "a" * 2_048,
        # a character that becomes one of a to z when case is ignored
        "http\u017f://example.com/",
        "https://example.com/\u017f",
        "https://example.com/?\u0130",
        "https://\u212aex.example.com/",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(text: str) -> None:
    with pytest.raises(BadUrl):
        parse_url(text)


def test_no_events_at_all_are_no_choice() -> None:
    errors: list[FieldError] = []
    assert webhook_events("events", [], errors) is None
    [error] = errors
    assert error.code == "unknown_event"
    assert error.message.startswith('events: expected one or more of ["task.claimed"')


def test_ids_are_one_token_of_a_subject() -> None:
    made = delivery_id("019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55", "task.done", requests_id("alice@example.org"))
    assert made == f"019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55_done_{requests_id('alice@example.org')}"
    assert "." not in made
