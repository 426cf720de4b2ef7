"""The source of the address that a client command calls: the option, the variable, the data folder, the default."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner

from ops.cli import cli
from ops.commands.addresses import (
    DEFAULT_NATS_URL,
    DEFAULT_URL,
    FILE,
    Address,
    Addresses,
    Found,
    chosen,
    find,
    published,
)
from ops.commands.nats_options import nats_options
from ops.nats.access import NatsAccess

FOLDER: Final = Path("data")
UP: Final = Addresses(pid=7, command="up", url="http://127.0.0.1:8080", nats_url="nats://127.0.0.1:4333")
SERVER: Final = Addresses(pid=7, command="nats-server", nats_url="nats://127.0.0.1:4333")


@pytest.mark.parametrize(
    ("given", "found", "expected"),
    [
        pytest.param("http://there", Found(UP), Address("http://there", "--url"), id="1"),
        pytest.param(
            None, Found(UP), Address("http://127.0.0.1:8080", "data/up.json of `warmlane up`, process 7"), id="2"
        ),
        pytest.param(
            None,
            Found(SERVER),
            Address(DEFAULT_URL, "the default, since `warmlane nats-server` of data/up.json has no gateway"),
            id="3-no-gateway",
        ),
        pytest.param(None, Found(why="of rain"), Address(DEFAULT_URL, "the default, since of rain"), id="3"),
    ],
)
def test_chosen(given: str | None, found: Found, expected: Address) -> None:
    assert chosen("url", given, "--url", found, FOLDER) == expected


def test_a_nats_server_alone_is_found_as_well() -> None:
    assert chosen("nats_url", None, "--nats-url", Found(SERVER), FOLDER).url == SERVER.nats_url
    assert chosen("nats_url", None, "--nats-url", Found(why="…"), FOLDER).url == DEFAULT_NATS_URL


def test_up_publishes_its_addresses_while_it_runs(tmp_path: Path) -> None:
    with published(tmp_path, UP):
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
        assert find(tmp_path, is_named=True) == Found(UP)
        assert find(tmp_path, is_named=False) == Found(UP)
    assert find(tmp_path, is_named=True).why == f"there is no {tmp_path / FILE} of a `warmlane up`"


def test_the_file_of_a_killed_up_is_recognised_whatever_process_has_its_pid(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from ops.commands.addresses import *\n"
        f"with published(Path(sys.argv[1]), Addresses(pid={os.getpid()}, command='up', nats_url='nats://x')):\n"
        "    print('heard', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"heard\n"
        assert find(tmp_path, is_named=True).addresses is not None
        process.send_signal(signal.SIGKILL)
    ended = f"{tmp_path / FILE} is of a `warmlane up` (process {os.getpid()}) that has ended"
    assert find(tmp_path, is_named=True) == Found(why=ended)
    with published(tmp_path, UP):  # the next one's
        assert find(tmp_path, is_named=True) == Found(UP)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"pid": "x", "command": "up", "nats_url": ""}'])
def test_what_up_did_not_write_is_no_address(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert find(tmp_path, is_named=True) == Found(why=f"{tmp_path / FILE} is not what `warmlane up` writes")
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    assert find(tmp_path, is_named=True).why.endswith("cannot be read: Is a directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_folder_counts_only_by_name(tmp_path: Path) -> None:
    """`.warmlane` in the current folder may be a trap in /tmp, which would send prompts and keys to an address of its
    own."""
    with published(tmp_path, UP):
        os.chown(tmp_path / FILE, 12_345, 12_345)
        assert find(tmp_path, is_named=True) == Found(UP)
        assert "is another user's: name the folder with --data-dir" in find(tmp_path, is_named=False).why


@pytest.mark.parametrize(
    ("arguments", "variables", "named_by"),
    [
        (["--url", "http://127.0.0.1:9"], {}, "http://127.0.0.1:9 (--url)"),
        ([], {"WARMLANE_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 (WARMLANE_URL)"),
        (["--data-dir", "{folder}"], {}, "http://127.0.0.1:8 ({folder}/up.json of `warmlane up`, process 7)"),
        ([], {"WARMLANE_DATA_DIR": "{folder}"}, "http://127.0.0.1:8 ({folder}/up.json of `warmlane up`, process 7)"),
        (["--url", "http://127.0.0.1:9", "--data-dir", "{folder}"], {}, "http://127.0.0.1:9 (--url)"),
    ],
)
def test_an_error_says_who_named_the_address(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], named_by: str
) -> None:
    def named(text: str) -> str:
        return text.replace("{folder}", str(tmp_path))

    addresses = Addresses(pid=7, command="up", url="http://127.0.0.1:8", nats_url="nats://127.0.0.1:7")
    with published(tmp_path, addresses):
        result = CliRunner().invoke(
            cli,
            ["lane-mode", "anisora", *map(named, arguments)],
            env={name: named(value) for name, value in variables.items()},
        )
    assert result.exit_code == 1
    assert f"no gateway answers at {named(named_by)}: " in result.stderr
    assert "start one with `warmlane up`, name the folder of one with --data-dir" in result.stderr


def test_commands_on_nats_find_it_too(tmp_path: Path) -> None:
    @click.command()
    @nats_options("admin", asks_for_folder=True)
    def command(nats: NatsAccess) -> None:
        click.echo(nats.shown)

    with published(tmp_path, UP):
        result = CliRunner().invoke(command, ["--data-dir", str(tmp_path)])
    assert result.stdout == f"{UP.nats_url} ({tmp_path}/up.json of `warmlane up`, process 7)\n"
