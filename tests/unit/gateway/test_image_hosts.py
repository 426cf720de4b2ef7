"""From which hosts images are fetched: those that an operator named, and no others."""

from ipaddress import ip_network

import click
import pytest

from contracts.urls import parse_url
from gateway.rules.image_hosts import NONE_ALLOWED, ImageHosts
from ops.commands.images import ImageHostType, ImageOptions, image_options

HOSTS = ImageHosts.of(["images.example.com", "*.cdn.example", ip_network("10.1.0.0/16")])


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.com/a.png",
        "https://IMAGES.example.com:8443/a.png",
        "https://images.example.com./a.png",
        "https://a.cdn.example/",
        "https://a.b.cdn.example/",
        "http://10.1.2.3/a.png",
    ],
)
def test_what_was_named_is_allowed(url: str) -> None:
    assert HOSTS.objection(parse_url(url)) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "https://x.images.example.com/",
        "https://cdn.example/",
        "https://evilcdn.example/",
        "https://images.example.com.evil.example/",
        "https://10.2.0.1/",
        "https://93.184.216.34/",
        "https://[::1]/",
    ],
)
def test_nothing_else_is(url: str) -> None:
    assert "--images-allow-host" in (HOSTS.objection(parse_url(url)) or "")


def test_without_a_word_of_the_operator_nothing_is_fetched() -> None:
    assert ImageHosts().objection(parse_url("https://images.example.com/")) == NONE_ALLOWED


def test_a_star_allows_every_name_and_no_address() -> None:
    every = ImageHosts.of(["*"])
    assert every.objection(parse_url("https://anything.example/")) is None
    assert every.objection(parse_url("https://93.184.216.34/")) is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Images.Example.com.", "images.example.com"),
        ("*.cdn.example", "*.cdn.example"),
        ("*", "*"),
        ("10.1.0.0/16", ip_network("10.1.0.0/16")),
        ("::1", ip_network("::1/128")),
        ("[::1]", ip_network("::1/128")),
    ],
)
def test_hosts_on_a_command_line(text: str, expected: object) -> None:
    assert ImageHostType().convert(text, None, None) == expected


@pytest.mark.parametrize(
    "text", ["", "https://a.example", "a.example/x", "a.example:443", "a*.example", "*.*", "1.2", "a b"]
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(click.BadParameter):
        ImageHostType().convert(text, None, None)


def test_a_gateway_is_handed_on_what_the_command_was_given() -> None:
    """`warmlane up` writes them on the command line of its gateway."""
    given = ImageOptions(
        ("images.example.com", "*.cdn.example", "*", ip_network("10.1.0.0/16"), ip_network("::1")), 90.5
    )
    found: list[ImageOptions] = []

    @click.command()
    @image_options
    def command(images: ImageOptions) -> None:
        found.append(images)

    assert command.main(given.arguments(), standalone_mode=False) is None
    assert command.main(ImageOptions().arguments(), standalone_mode=False) is None
    assert found == [given, ImageOptions()]
