"""How a video is downloaded, numbered as in `Downloading.until_whole`; and the file that it grows in."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.warmlane_client.scripted import Run, document, lost, piece, problem, reply
from warmlane_client import DownloadDamaged, GatewayUnreachable, NotThere, NoVideo, PartInUse, Patience, Task
from warmlane_client.core.downloading import Downloading
from warmlane_client.core.effects import Reply
from warmlane_client.part import PartFile

VIDEO = bytes(range(100))
SHA256 = hashlib.sha256(VIDEO).hexdigest()
TASK = Task.of(document("done", video={"bytes": 100, "sha256": SHA256}))


def part(first: int) -> Reply:
    return reply(206, content_range=f"bytes {first}-99/100")


def run(outcomes: list[Any], *, there: bytes = b"") -> Run:
    running = Run(outcomes)
    running.file = there
    running.of(Downloading(TASK, Patience(), there=len(there)).until_whole(), whole=VIDEO)
    assert running.file == VIDEO
    return running


def test_a_video_comes_in_pieces() -> None:
    done = run([reply(200), piece(VIDEO[:60]), piece(VIDEO[60:]), piece(None)])
    assert "Range" not in done.headers()[0]


def test_1_a_connection_that_breaks_goes_on_where_it_was() -> None:
    done = run([reply(200), piece(VIDEO[:60]), lost(), lost(), part(60), piece(VIDEO[60:]), piece(None)])
    asked = {"Range": "bytes=60-", "If-Match": f'"{SHA256}"'}
    assert [asked.items() <= headers.items() for headers in done.headers()] == [False, True, True]


def test_1_what_an_earlier_download_left_is_not_asked_for_again() -> None:
    done = run([part(60), piece(VIDEO[60:]), piece(None)], there=VIDEO[:60])
    assert done.headers()[0]["Range"] == "bytes=60-"
    assert run([], there=VIDEO).asked == []


def test_4_a_link_elsewhere_is_not_followed() -> None:
    done = run([reply(302, location="https://store.example/x"), reply(200), piece(VIDEO), piece(None)])
    assert [dict(each.call.params) for each in done.asked] == [{}, {"redirect": "false"}]


@pytest.mark.parametrize(
    "first",
    [
        [reply(200)],
        [part(0)],
        [problem(412, "precondition_failed"), reply(200)],
        [problem(416, "range_not_satisfiable"), reply(200)],
    ],
    ids=["whole", "elsewhere", "another video", "no such range"],
)
def test_what_does_not_go_on_begins_anew(first: list[Reply]) -> None:
    run([*first, piece(VIDEO), piece(None)], there=VIDEO[:60])


def test_2_a_gateway_that_does_not_answer_is_given_up() -> None:
    with pytest.raises(GatewayUnreachable):
        run([lost()] * 4)
    with pytest.raises(GatewayUnreachable):
        run([reply(200), piece(VIDEO[:1]), *[lost()] * 40])


@pytest.mark.parametrize("there", [b"x" * 60, b"x" * 100, b"x" * 101], ids=["shorter", "as long", "longer"])
def test_3_what_does_not_fit_is_thrown_away_once(there: bytes) -> None:
    rest = [part(60), piece(VIDEO[60:]), piece(None)] if len(there) == 60 else []
    done = run([*rest, reply(200), piece(VIDEO), piece(None)], there=there)
    assert done.sealed_as[-1]


@pytest.mark.parametrize("came", [VIDEO[:-1], VIDEO + b"x", b"x" * 100])
def test_a_damaged_video_is_none(came: bytes) -> None:
    end = [] if len(came) > 100 else [piece(None)]
    with pytest.raises(DownloadDamaged):
        run([reply(200), piece(came), *end])


def test_a_video_that_is_gone_or_was_never_there() -> None:
    with pytest.raises(NotThere):
        run([problem(410, "video_expired")])
    failed = Task.of(document("failed", error={"code": "worker_lost", "message": "twice"}))
    with pytest.raises(NoVideo, match="worker_lost: twice"):
        Downloading(failed, Patience(), there=0)


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "fox.mp4"
    path.write_bytes(b"an earlier one")
    first = PartFile(path, None, SHA256, keep=True).open()
    first.write(VIDEO[:60])
    assert not first.seal(SHA256)
    with pytest.raises(PartInUse):
        PartFile(path, None, SHA256, keep=True).open()
    first.close()
    assert path.read_bytes() == b"an earlier one"
    second = PartFile(path, None, SHA256, keep=True).open()
    assert second.there == 60
    second.write(VIDEO[60:])
    assert second.seal(SHA256)
    second.close()
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("fox.mp4", VIDEO)]


def test_a_part_that_is_not_to_be_kept_goes(tmp_path: Path) -> None:
    file = PartFile(tmp_path / "fox.mp4", tmp_path / "mine.part", SHA256, keep=False).open()
    file.write(b"x")
    file.close()
    assert list(tmp_path.iterdir()) == []
