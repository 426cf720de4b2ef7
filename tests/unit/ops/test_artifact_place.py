"""The values of `--artifacts`, and which processes get the credentials of the store."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lane_worker.forking.fork_server import host_environment
from ops.artifact_place import SECRETS, BucketPlace, FolderPlace, endpoint_of, place_of
from ops.cli import cli
from ops.commands.artifact_options import placed, require_links_possible


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("s3://videos", BucketPlace("videos", "")),
        ("s3://videos/", BucketPlace("videos", "")),
        ("s3://my.videos-1/warmlane/production/", BucketPlace("my.videos-1", "warmlane/production")),
        ("/srv/videos", FolderPlace(Path("/srv/videos"))),
        ("videos", FolderPlace(Path.cwd() / "videos")),
    ],
)
def test_places(text: str, place: FolderPlace | BucketPlace) -> None:
    assert place_of(text) == place
    assert place_of(str(place)) == place  # as it goes to another process
    assert placed(place) == ["--artifacts", str(place)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        (" ", "it is empty"),
        ("gs://videos", "is not a place for artifacts"),
        ("https://s3.example.org/videos", "is not a place for artifacts"),
        ("s3://", "not the name of a bucket"),
        ("s3://Videos", "not the name of a bucket"),
        ("s3://key:secret@videos/x", "belong in the variables AWS_ENDPOINT_URL"),
        ("s3://127.0.0.1:9000/videos", "belong in the variables AWS_ENDPOINT_URL"),
        ("s3://videos/../x", "is not a valid prefix"),
        ("s3://videos/a//b", "is not a valid prefix"),
        ("s3://videos/a?region=x", "is not a valid prefix"),
    ],
)
def test_what_is_no_place_says_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        place_of(text)


@pytest.mark.parametrize("command", ["up", "gateway", "supervisor", "lane", "degraded", "doctor"])
def test_every_process_takes_the_setting_and_refuses_what_is_none(command: str) -> None:
    arguments = [command, *(["--model", "anisora"] if command == "lane" else []), "--artifacts", "gs://videos"]
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, "s3://BUCKET/PREFIX" in " ".join(result.output.split())) == (2, True), result.output


def test_links_need_a_bucket_and_an_end() -> None:
    require_links_possible(None, None)
    require_links_possible(600.0, BucketPlace("videos", ""))
    with pytest.raises(click.BadParameter, match="a folder has no links"):
        require_links_possible(600.0, FolderPlace(Path("/srv")))
    with pytest.raises(click.BadParameter, match="7 days"):
        require_links_possible(8 * 86_400.0, BucketPlace("videos", ""))


def test_the_endpoint_is_the_one_that_obstore_takes() -> None:
    assert endpoint_of({}) is None
    assert endpoint_of({"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}) == "http://b"


def test_a_pipeline_host_is_not_told_what_opens_the_store() -> None:
    """It decodes what clients send, and runs what a checkpoint holds."""
    given = host_environment(dict.fromkeys(SECRETS, "canary") | {"PATH": "/bin"})
    assert "canary" not in given.values()
    assert given["PATH"] == "/bin"
