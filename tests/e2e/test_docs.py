"""The commands of README and docs, run as a newcomer pastes them. The answers in the text must match the real ones."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import av
import pytest
from msgspec import Struct

from contracts.topology import CONTROL, LANES, TASKS, bucket_stream
from ops.nats.access import environment_for
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.support import clean_environment, eventually, shared_forks
from tests.kit.system import UpProcess

ROOT: Final = Path(__file__).parents[2]
COMMANDS_PAGE: Final = ROOT / "docs" / "use" / "commands.md"
API_PAGE: Final = ROOT / "docs" / "use" / "api.md"
NATS_PAGE: Final = ROOT / "docs" / "operate" / "nats.md"
URL: Final = "http://127.0.0.1:8000"
_BLOCK: Final = re.compile(r"^```(bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS: Final = tuple(
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if _BLOCK.search(path.read_text())
)


class Step(Struct, frozen=True):
    """A command, and what its document shows as its output; None where it shows none."""

    command: str
    shown: str | None


def steps(document: Path) -> list[Step]:
    """Every command of *document* in its order. A command goes on while its lines end with a backslash."""
    found: list[Step] = []
    for language, body in _BLOCK.findall(document.read_text()):
        if language == "bash":
            found.append(Step(body, None))
            continue
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            length = next(index for index, line in enumerate(lines, 1) if not line.endswith("\\"))
            found.append(Step("\n".join(lines[:length]), "\n".join(lines[length:])))
    return found


def run_all(commands: list[str], folder: Path, url: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """What each command prints. One shell runs all of them, so that variables last. Raises if one fails.

    *url* replaces the documents' address. *environment* says where the system is; by default, `WARMLANE_URL` does.
    """
    script = ["set -e"]
    for number, command in enumerate(commands):
        script.append("{ " + command.replace(URL, url).rstrip() + f"\n}} > {number}.out")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        # the passwords of servers under test are not those of this system
        env=environment_for(None, clean_environment()) | {"PATH": path} | dict(environment or {"WARMLANE_URL": url}),
        check=True,
        timeout=150,
    )
    return [(folder / f"{number}.out").read_text(errors="replace") for number in range(len(commands))]


def same_keys(shown: Any, real: Any, place: str = "$") -> None:
    """Asserts that both have the same keys and types, and lists of the same length; a null may have a value instead."""
    if isinstance(shown, dict) and isinstance(real, dict):
        assert list(shown) == list(real), place
        for key in shown:
            same_keys(shown[key], real[key], f"{place}.{key}")
    elif isinstance(shown, list) and isinstance(real, list):
        assert len(shown) == len(real), place
        for index, (one, other) in enumerate(zip(shown, real, strict=True)):
            same_keys(one, other, f"{place}[{index}]")
    elif shown is not None and real is not None:
        assert type(shown) is type(real), place


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*", "0", text)


def test_no_page_with_commands_is_missing() -> None:
    assert {"README.md", "api.md", "commands.md", "lanes.md", "observability.md"} <= {path.name for path in DOCUMENTS}
    assert sum(len(steps(document)) for document in DOCUMENTS) > 16


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_of_a_document_answer_as_it_shows(document: Path, system: UpProcess, tmp_path: Path) -> None:
    wanted = steps(document)
    outputs = run_all([step.command for step in wanted], tmp_path, system.url)
    for step, output in zip(wanted, outputs, strict=True):
        if step.shown is None:
            continue
        if step.shown.startswith("{\n") or step.shown.startswith('{"ready'):
            shown, real = json.loads(step.shown), json.loads(output)
            same_keys(shown, real)
            for key in ("status", "code", "title", "detail", "errors"):  # a reader relies on these
                assert shown.get(key) == real.get(key), step.command
        else:
            # the last line only: a fast reader sees more events than a slow one
            assert without_numbers(output).splitlines()[-1:] == without_numbers(step.shown).splitlines()[-1:], step
    for name in re.findall(r"(?:-so|--out) (\S+\.mp4)", "\n".join(step.command for step in wanted)):
        with av.open(str(tmp_path / name)) as container:
            assert len(list(container.decode(video=0))) == 17


def test_a_key_leads_to_the_id_that_is_shown(system: UpProcess, tmp_path: Path) -> None:
    """The id follows from caller and key, so the page can promise it."""
    keyed = [step for step in steps(API_PAGE) if "Idempotency-Key" in step.command][:2]
    assert run_all([step.command for step in keyed], tmp_path, system.url) == [f"{step.shown}\n" for step in keyed]


ELSEWHERE: Final = {
    # a machine behind a proxy that is down, and a terminal that shows only ASCII
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
}
FIRST_DAY: Final = (
    "warmlane status",
    "warmlane slots",
    "warmlane keys list",
    "warmlane provision --check",
    "warmlane lane-mode anisora",
    "warmlane submit phr00t 'ein Füchslein im Schnee' --num-frames 5 --seed 7 --out $'f\\xfcchslein.mp4'",
    "id=$(warmlane tasks list --model phr00t --limit 1 --json | python -c 'import json, sys; "
    'print(json.load(sys.stdin)["tasks"][0]["id"])\'); warmlane tasks show $id',
    "warmlane tasks download $id --out again.mp4 && cmp again.mp4 $'f\\xfcchslein.mp4'",
    "! warmlane tasks cancel $id 2>&1",
    "! warmlane submit phr00t $'f\\xfcchslein' 2>&1",
    "! warmlane submit phr00t fox --out again.mp4/fox.mp4 2>&1",
    "warmlane doctor",
)


def test_the_first_day_works_with_other_ports_names_and_locales(tmp_path: Path) -> None:
    """Other ports, names that are not ASCII or not UTF-8, a proxy in the environment and an odd locale. No command
    needs an option, since `up` writes its address into its folder, and none ends in a traceback."""
    folder = tmp_path / "dəğerler"
    folder.mkdir()
    (tmp_path / ".curlrc").write_text('noproxy = "127.0.0.1"\n')
    up = UpProcess(folder, **ELSEWHERE, **shared_forks())
    up.start()
    try:
        environment = ELSEWHERE | {"CURL_HOME": str(tmp_path), "WARMLANE_DATA_DIR": str(up.data_dir)}
        readme = [step.command for document in (ROOT / "README.md", COMMANDS_PAGE) for step in steps(document)]
        outputs = run_all([*readme, *FIRST_DAY], tmp_path, up.url, environment)[len(readme) :]
    finally:
        up.stop()
    status, slots, keys, provisioned, mode, _, task, _, ended, misspelt, unsaved, doctor = outputs
    assert "anisora-0" in status
    assert "phr00t-0" in slots
    assert "no API key yet" in keys
    assert "nothing to do" in provisioned
    assert mode == "anisora is auto\n"
    assert "chslein im Schnee" in task
    assert f"{up.url}/tasks/" in task
    assert "it had ended already: done" in ended
    assert "Invalid value for 'PROMPT': not UTF-8 at character 2" in misspelt
    assert "again.mp4 is a file, not a folder" in unsaved
    assert "running: `warmlane up`" in doctor
    for text in (*outputs, up.output.read_text(errors="replace")):
        assert "Traceback" not in text
    assert "ready in" in up.output.read_text(errors="replace")


async def test_what_the_documented_nats_commands_name_exists(system: UpProcess) -> None:
    """The `nats` tool is no dependency of the tests: its commands' names are looked up through the JetStream API."""
    text = NATS_PAGE.read_text()
    task_id = system.ended(system.submit(num_frames=9)["id"])["id"]
    link = await NatsLink.connect(system.nats_url, name="test")
    try:
        for stream in re.findall(r"^nats stream (?:info|subjects) (\S+)", text, re.MULTILINE):
            assert (await js_of(link).stream_info(stream)).config.name == stream
        for stream, consumer in re.findall(r"^nats consumer info (\S+) (\S+)", text, re.MULTILINE):
            assert (await js_of(link).consumer_info(stream, consumer)).name == consumer
        for bucket, key in re.findall(r"^nats kv (?:get|history) (\S+) (\S+)", text, re.MULTILINE):

            async def is_there(bucket: str = bucket, key: str = key.replace("ID", task_id)) -> bool:
                entry = await link.entries.get(bucket, key)
                return entry is not None and bool(entry.value)

            await eventually(is_there)  # the degraded worker starts when the lanes are warm
        assert (await js_of(link).stream_info(bucket_stream(TASKS))).config.max_msgs_per_subject == 4
        assert (await js_of(link).stream_info(bucket_stream(LANES))).config.name
    finally:
        await link.close()


async def test_the_documented_nats_command_switches_a_lane_without_a_restart(system: UpProcess) -> None:
    """`nats kv put control lanes.anisora …`: off and on again, without a restart."""
    puts = re.findall(r"^nats kv put (\S+) (\S+) (\S+)", NATS_PAGE.read_text(), re.MULTILINE)
    assert [mode for *_, mode in puts] == ["degraded", "auto"]
    body = {"model": "anisora", "prompt": "switched", "num_frames": 9}
    link = await NatsLink.connect(system.nats_url, name="test")
    try:
        for (bucket, key, mode), expected in zip(puts, ("degraded", "lane"), strict=True):
            assert bucket == CONTROL
            await link.entries.put(bucket, key, mode.encode())

            async def answered(route: str = expected) -> bool:
                response = await asyncio.to_thread(system.http.post, "/generate", json=body)
                assert response.status_code == 202, response.text
                await asyncio.to_thread(system.ended, response.json()["id"])
                return bool(response.json()["route"] == route)

            await eventually(answered)
    finally:
        await link.entries.put(CONTROL, "lanes.anisora", b"auto")
        await link.close()
