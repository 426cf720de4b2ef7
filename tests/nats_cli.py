"""The NATS CLI's commands that the runbook uses, as the requests that the tool makes of the JetStream API.

The tool itself is no dependency of the tests. Its verbs, arguments, flags and requests are those of its own source,
0.2 to 0.4. What is not here is refused like a verb or a flag that it does not have: who uses more of it adds that here
first.
"""

import base64
import contextlib
import json
import re
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ops.nats_client import Denied
from ops.nats_link import NatsLink, parse_time

REPLY_S: Final = 5.0  # the tool's own --timeout
SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ApiError(Exception):
    """The server's answer is an error."""


class Entry:
    """One revision of a key; *value* is None where the key was deleted."""

    def __init__(self, bucket: str, message: dict[str, Any]) -> None:
        headers = base64.b64decode(message.get("hdrs", "")).decode()
        gone = re.search(r"KV-Operation: (DEL|PURGE)|Nats-Marker-Reason", headers)
        self.key = message["subject"].removeprefix(f"$KV.{bucket}.")
        self.value = None if gone else base64.b64decode(message.get("data", ""))
        self.revision: int = message["seq"]
        self.created = parse_time(message["time"])


class Watch:
    """What a consumer that the tool made sends to it."""

    def __init__(self, user: "User", stream: str, consumer: str, initial: int, messages: Subscription) -> None:
        self._user, self._stream, self._consumer = user, stream, consumer
        self._initial, self._messages = initial, messages

    async def next(self) -> Entry:
        """The next entry, be it one that was there already or a change."""
        while True:
            message = await self._messages.next_msg(timeout=60)
            if (message.headers or {}).get("Status") is None:  # else a sign of life, or flow control
                return _entry_of(self._stream.removeprefix("KV_"), message)

    async def initial(self) -> list[Entry]:
        """The entries that were there; then the tool ends, and asks for its consumer to be deleted.

        A user who may not do that waits for the tool's time-out, and sees no error; the server deletes it in time.
        """
        entries = [await self.next() for _ in range(self._initial)]
        with contextlib.suppress(Denied):
            await self._user.ask(f"CONSUMER.DELETE.{self._stream}.{self._consumer}")
        await self._messages.unsubscribe()
        return entries


class User:
    """A user of the tool. Every call raises Denied for what the server does not let them do, and ApiError."""

    def __init__(self, link: NatsLink) -> None:
        self._client = link.client
        self._made = 0

    async def ask(self, subject: str, request: object = None) -> dict[str, Any]:
        """What the JetStream API answers."""
        payload = b"" if request is None else json.dumps(request).encode()
        return _told(await self._client.request(f"$JS.API.{subject}", payload, timeout=REPLY_S))

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Stores a message."""
        _told(await self._client.request(subject, payload, timeout=REPLY_S, headers=headers))

    async def bucket(self, bucket: str) -> str:
        """The stream behind *bucket*; the tool looks at it before anything else."""
        info = await self.ask(f"STREAM.INFO.KV_{bucket}")
        assert not info["config"].get("allow_direct"), "else the tool would read by $JS.API.DIRECT.GET"
        return f"KV_{bucket}"

    async def entry(self, bucket: str, key: str, revision: int | None) -> Entry:
        """One entry; ApiError where there is none, or a marker of its deletion."""
        stream, subject = await self.bucket(bucket), f"$KV.{bucket}.{key}"
        request = {"last_by_subj": subject} if revision is None else {"seq": revision}
        message = (await self.ask(f"STREAM.MSG.GET.{stream}", request))["message"]
        entry = Entry(bucket, message)
        if message["subject"] != subject or entry.value is None:
            raise ApiError("key not found")
        return entry

    async def watch(self, bucket: str, key: str = ">", *, history: bool = False, headers: bool = False) -> Watch:
        """The entries of *key*, a key or a pattern."""
        stream, subject = await self.bucket(bucket), f"$KV.{bucket}.{key}"
        inbox = self._client.new_inbox()
        messages = await self._client.subscribe(inbox)
        self._made += 1
        name = f"{id(self):x}{self._made}"
        config = {
            "deliver_subject": inbox,
            "deliver_policy": "all" if history else "last_per_subject",
            "ack_policy": "none",
            "filter_subject": subject,
            "headers_only": headers,
            "flow_control": True,
            "idle_heartbeat": 5_000_000_000,
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
        }
        request = {"stream_name": stream, "config": config}
        made = await self.ask(f"CONSUMER.CREATE.{stream}.{name}.{subject}", request)
        return Watch(self, stream, name, made["num_pending"] + made["delivered"]["consumer_seq"], messages)

    async def backup(self, stream: str, folder: Path) -> None:
        """A snapshot of *stream*, consumers included."""
        await self.ask(f"STREAM.INFO.{stream}")
        inbox = self._client.new_inbox()
        chunks = await self._client.subscribe(inbox)
        told = await self.ask(f"STREAM.SNAPSHOT.{stream}", {"deliver_subject": inbox, "chunk_size": 128 * 1024})
        content = b""
        while (chunk := await chunks.next_msg(timeout=REPLY_S)).data:
            content += chunk.data
            if chunk.reply:
                await chunk.respond(b"")
        folder.mkdir(parents=True)
        (folder / "backup.json").write_text(json.dumps({"config": told["config"], "state": told["state"]}))
        (folder / "stream.arc.s2").write_bytes(content)

    async def restore(self, folder: Path) -> None:
        """The stream that `backup` put into *folder*, where there is none of its name."""
        meta = json.loads((folder / "backup.json").read_bytes())
        name = meta["config"]["name"]
        with contextlib.suppress(ApiError):
            await self.ask(f"STREAM.INFO.{name}")
            raise AssertionError(f"Stream {name} already exists")
        subject = (await self.ask(f"STREAM.RESTORE.{name}", meta))["deliver_subject"]
        for chunk in ((folder / "stream.arc.s2").read_bytes(), b""):
            answer = await self._client.request(subject, chunk, timeout=REPLY_S)
            if answer.data:
                _told(answer)


def _told(answer: Msg) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(answer.data)
    if "error" in told:
        raise ApiError(told["error"].get("description", told["error"]))
    return told


def _entry_of(bucket: str, message: Msg) -> Entry:
    headers = "".join(f"{name}: {value}\r\n" for name, value in (message.headers or {}).items())
    return Entry(
        bucket,
        {
            "subject": message.subject,
            "data": base64.b64encode(message.data).decode(),
            "hdrs": base64.b64encode(headers.encode()).decode(),
            "seq": message.metadata.sequence.stream,
            "time": message.metadata.timestamp.isoformat(),
        },
    )


Call = Coroutine[Any, Any, Any]
_force = click.option("--force", "-f", is_flag=True, help="Do not ask back.")
_json = click.option("--json", "-j", is_flag=True)


def call(arguments: Sequence[str], user: User) -> Call:
    """The requests that `nats ARGUMENTS` makes as *user*, to be awaited for what it shows.

    Raises click.UsageError for a command line that the tool does not have.
    """
    made: Call = nats.main(list(arguments), prog_name="nats", standalone_mode=False, obj=user)
    return made


@click.group(context_settings={"help_option_names": []})
def nats() -> None:
    pass


# ── nats stream ──────────────────────────────────────────────────────────────────────────────────────────────────────


@nats.group()
def stream() -> None:
    pass


@stream.command(name="ls")
@click.option("--all", "-a", "everything", is_flag=True)
@click.option("--names", "-n", is_flag=True)
@click.pass_obj
async def stream_ls(user: User, everything: bool, names: bool) -> list[str]:
    told = await user.ask("STREAM.LIST", {"offset": 0})
    found = [found["config"]["name"] for found in told["streams"]]
    return [name for name in found if everything or not name.startswith("KV_")]


@stream.command(name="info")
@click.argument("name")
@click.option("--state", is_flag=True)
@_json
@click.pass_obj
async def stream_info(user: User, name: str, state: bool, json: bool) -> dict[str, Any]:
    told = await user.ask(f"STREAM.INFO.{name}")
    shown: dict[str, Any] = told["state"] if state else told
    return shown


@stream.command(name="subjects")
@click.argument("name")
@click.argument("filter", default=">")
@_json
@click.pass_obj
async def stream_subjects(user: User, name: str, filter: str, json: bool) -> dict[str, int]:
    await user.ask(f"STREAM.INFO.{name}")
    told = await user.ask(f"STREAM.INFO.{name}", {"subjects_filter": filter})
    return told["state"].get("subjects") or {}


@stream.command(name="get")
@click.argument("name")
@click.argument("sequence", type=int, required=False)
@click.option("--last-for", "-S")
@_json
@click.pass_obj
async def stream_get(
    user: User, name: str, sequence: int | None, last_for: str | None, json: bool
) -> tuple[int, str, bytes]:
    if (sequence is None) == (last_for is None):
        raise click.UsageError("a sequence or --last-for, or it asks back")
    await user.ask(f"STREAM.INFO.{name}")
    request = {"last_by_subj": last_for} if sequence is None else {"seq": sequence}
    message = (await user.ask(f"STREAM.MSG.GET.{name}", request))["message"]
    return message["seq"], message["subject"], base64.b64decode(message.get("data", ""))


@stream.command(name="rmm")
@click.argument("name")
@click.argument("sequence", type=int)
@_force
@click.pass_obj
async def stream_rmm(user: User, name: str, sequence: int, force: bool) -> None:
    await user.ask(f"STREAM.INFO.{name}")
    told = await user.ask(f"STREAM.MSG.DELETE.{name}", {"seq": sequence})
    assert told["success"]


@stream.command(name="backup")
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path))
@click.pass_obj
async def stream_backup(user: User, name: str, target: Path) -> None:
    await user.backup(name, target)


@stream.command(name="restore")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.pass_obj
async def stream_restore(user: User, folder: Path) -> None:
    await user.restore(folder)


# ── nats consumer ────────────────────────────────────────────────────────────────────────────────────────────────────


@nats.group()
def consumer() -> None:
    pass


@consumer.command(name="info")
@click.argument("of")
@click.argument("name")
@_json
@click.pass_obj
async def consumer_info(user: User, of: str, name: str, json: bool) -> dict[str, Any]:
    return await user.ask(f"CONSUMER.INFO.{of}.{name}")


@consumer.command(name="pause")
@click.argument("of")
@click.argument("name")
@click.argument("until")
@_force
@click.pass_obj
async def consumer_pause(user: User, of: str, name: str, until: str, force: bool) -> dict[str, Any]:
    lasts_s = _seconds(until)
    await user.ask(f"CONSUMER.INFO.{of}.{name}")
    await user.ask("INFO")
    pause_until = (datetime.now(UTC) + timedelta(seconds=lasts_s)).isoformat().replace("+00:00", "Z")
    told = await user.ask(f"CONSUMER.PAUSE.{of}.{name}", {"pause_until": pause_until})
    assert told["paused"]
    return told


@consumer.command(name="resume")
@click.argument("of")
@click.argument("name")
@_force
@click.pass_obj
async def consumer_resume(user: User, of: str, name: str, force: bool) -> None:
    info = await user.ask(f"CONSUMER.INFO.{of}.{name}")
    await user.ask("INFO")
    if not info.get("paused"):
        raise ApiError("consumer is not paused")
    told = await user.ask(f"CONSUMER.PAUSE.{of}.{name}")
    assert not told.get("paused")


def _seconds(duration: str) -> int:
    parts = re.findall(r"(\d+)([smhd])", duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise click.UsageError(f"no duration: {duration}")
    return sum(int(number) * SECONDS[unit] for number, unit in parts)


# ── nats kv ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@nats.group()
def kv() -> None:
    pass


@kv.command(name="ls")
@click.argument("bucket")
@click.option("--verbose", "-v", is_flag=True)
@click.option("--display-value", is_flag=True)
@click.pass_obj
async def kv_ls(user: User, bucket: str, verbose: bool, display_value: bool) -> dict[str, Entry | None]:
    """The keys, with their entries where these are shown."""
    if display_value and not verbose:
        raise click.UsageError("--display-value does nothing without --verbose")
    entries = await (await user.watch(bucket, headers=True)).initial()
    keys = [entry.key for entry in entries if entry.value is not None]
    return {key: await user.entry(bucket, key, None) if verbose else None for key in keys}


@kv.command(name="get")
@click.argument("bucket")
@click.argument("key")
@click.option("--raw", is_flag=True)
@click.option("--revision", type=int)
@click.pass_obj
async def kv_get(user: User, bucket: str, key: str, raw: bool, revision: int | None) -> bytes:
    value = (await user.entry(bucket, key, revision)).value
    assert value is not None
    return value if raw else value[:120]


@kv.command(name="history")
@click.argument("bucket")
@click.argument("key")
@click.pass_obj
async def kv_history(user: User, bucket: str, key: str) -> list[Entry]:
    entries = await (await user.watch(bucket, key, history=True)).initial()
    if not entries:
        raise ApiError("key not found")
    return entries


@kv.command(name="watch")
@click.argument("bucket")
@click.argument("key", default=">")
@click.pass_obj
async def kv_watch(user: User, bucket: str, key: str) -> Watch:
    return await user.watch(bucket, key)


@kv.command(name="put")
@click.argument("bucket")
@click.argument("key")
@click.argument("value")
@click.pass_obj
async def kv_put(user: User, bucket: str, key: str, value: str) -> None:
    await user.bucket(bucket)
    await user.publish(f"$KV.{bucket}.{key}", value.encode())


@kv.command(name="del")
@click.argument("bucket")
@click.argument("key")
@_force
@click.pass_obj
async def kv_del(user: User, bucket: str, key: str, force: bool) -> None:
    await user.bucket(bucket)
    await user.publish(f"$KV.{bucket}.{key}", b"", {"KV-Operation": "DEL"})


@kv.command(name="revert")
@click.argument("bucket")
@click.argument("key")
@click.argument("revision", type=int)
@_force
@click.pass_obj
async def kv_revert(user: User, bucket: str, key: str, revision: int, force: bool) -> None:
    entries = await (await user.watch(bucket, key, history=True)).initial()
    if len(entries) <= 1:
        raise ApiError("cannot revert key in a bucket where history=1")
    value = (await user.entry(bucket, key, revision)).value
    assert value is not None
    expected = {"Nats-Expected-Last-Subject-Sequence": str(entries[-1].revision)}
    await user.publish(f"$KV.{bucket}.{key}", value, expected)
