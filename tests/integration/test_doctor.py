"""`warmlane doctor` on this machine, with all that it checks in every state."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import msgspec
import pynvml
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from contracts.settings import load_settings
from contracts.topology import DEGRADED, WORK_CONSUMER
from ops.cli import cli
from ops.commands.doctor.findings import Finding
from ops.commands.doctor.machine import look
from ops.commands.doctor.verdicts import (
    GIB,
    judge_disk,
    judge_driver,
    judge_gpus,
    judge_model,
    judge_nats_version,
    judge_skew,
)
from ops.machine.cuda_driver import cuda_of_torch
from ops.machine.nvml import GpuInfo
from ops.machine.readings import Holder
from ops.nats.access import NatsAccess
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.fake_nvml import fake_nvml
from tests.kit.support import NatsServer, free_port

GPU = GpuInfo(uuid="GPU-1", name="H200", total_bytes=139 * GIB, free_bytes=100 * GIB)


def doctor(tmp_path: Path, *arguments: str) -> Result:
    ports = ["--port", str(free_port()), "--nats-port", str(free_port())]
    return CliRunner(env={"COLUMNS": "300"}).invoke(cli, ["doctor", "--data-dir", str(tmp_path), *ports, *arguments])


def look_around(
    tmp_path: Path, *, nats_url: str | None = None, port: int | None = None, profile: str = "tiny"
) -> Iterator[Finding]:
    server = NatsAccess.at(nats_url or f"nats://127.0.0.1:{free_port()}")
    return look(tmp_path, port or free_port(), free_port(), server, profile=profile)


def finding(what: str, findings: Iterator[Finding]) -> Finding:
    return next(found for found in findings if found.what == what)


def test_a_machine_that_runs_the_tests_can_run_up(tmp_path: Path) -> None:
    result = doctor(tmp_path / "not" / "made" / "yet")
    assert result.exit_code == 0, result.output
    for what in ("Python", "nats-server", "GPUs", "torch", "diffusers", "H.264", "disk", "HTTP port", "clock"):
        assert what in result.output
    assert "`warmlane up` can run" in result.output
    assert not (tmp_path / "not").exists(), "doctor made a folder"


def test_a_model_that_is_not_prepared_is_reported_with_the_command(tmp_path: Path) -> None:
    result = doctor(tmp_path, "--profile", "production")
    for model, folder in (("anisora", "anisora-v3.2"), ("phr00t", "phr00t-aio")):
        text = " ".join(re.sub(r"[│┃]", " ", result.output).split())
        assert f"model {model}" in text
        assert f"warmlane models prepare {model} --from PATH --to" in text
        assert folder in text


def test_a_missing_profile_is_reported(tmp_path: Path) -> None:
    result = doctor(tmp_path, "--profile", "huge")
    assert result.exit_code == 1
    assert "no profile 'huge'" in result.output


@pytest.mark.parametrize(
    ("gpus", "level", "advice"),
    [
        ([], "note", "no card here"),
        ([GPU], "ok", ""),
        ([msgspec.structs.replace(GPU, total_bytes=GIB, free_bytes=1)], "note", "1,073,741,824 in all and 1 free"),
    ],
)
def test_a_prepared_model_is_held_to_the_largest_card(
    tmp_path: Path, gpus: list[GpuInfo], level: str, advice: str
) -> None:
    header = b'{"shared.weight": {"dtype": "BF16", "shape": [10, 10], "data_offsets": [0, 200]}}'
    folder = tmp_path / "phr00t-aio"
    (folder / "text_encoder").mkdir(parents=True)
    (folder / "text_encoder" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "model_index.json").write_text('{"text_encoder": ["transformers", "UMT5EncoderModel"]}')
    found = judge_model(load_settings().catalog("production").models["phr00t"], tmp_path, gpus)
    assert (found.what, found.level) == ("model phr00t", level)
    assert "all weights 0.00 GB (text_encoder 0.00 GB), activations 9.70 GB" in found.found
    assert advice in found.advice


def test_a_taken_port_is_reported_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = doctor(tmp_path, "--port", str(port))
    assert result.exit_code == 1
    assert f"{port} is in use" in result.output
    assert "WARMLANE_PORT" in result.output


@pytest.mark.parametrize(
    ("program", "found", "advice"),
    [
        ("#!/bin/sh\necho nats-server: v2.9.10", "2.9.10", "2.11 or later"),
        ("#!/bin/sh\nexit 1", "does not state its version", "2.11 or later"),
        ("not a program", "does not run", "reinstall"),
        (None, "none", "not a program"),
    ],
    ids=["too-old", "silent", "broken", "absent"],
)
def test_an_unusable_nats_server_is_reported_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, found: str, advice: str
) -> None:
    path = tmp_path / "nats-server"
    if program is not None:
        path.write_text(program)
        path.chmod(0o755)
    monkeypatch.setenv("WARMLANE_NATS_SERVER", str(path))
    result = finding("nats-server", look_around(tmp_path))
    assert result.level == "missing"
    assert found in result.found
    assert advice in result.advice


def clock(tmp_path: Path, server: NatsServer) -> Finding:
    return finding("clock", look_around(tmp_path, nats_url=server.url))


async def test_the_clock_is_compared_with_a_server_that_runs(
    tmp_path: Path, nats_server: NatsServer, link: NatsLink
) -> None:
    result = await asyncio.to_thread(clock, tmp_path, nats_server)
    assert result.level == "ok"
    assert "the nats-server" in result.found


async def test_what_a_server_lacks_is_reported(tmp_path: Path, link: NatsLink, nats_server: NatsServer) -> None:
    """It runs with the rights of `operator`, and changes nothing."""
    url = nats_server.address.replace("://", "://operator:pw-operator@")
    result = await asyncio.to_thread(doctor, tmp_path, "--nats-url", url)
    assert "every stream, bucket and consumer is there" in result.output
    await js_of(link).delete_consumer(DEGRADED, WORK_CONSUMER)
    result = await asyncio.to_thread(doctor, tmp_path, "--nats-url", url)
    assert "DEGRADED/worker: missing" in result.output
    assert "run `warmlane provision`" in result.output


def test_a_server_without_streams_is_reported_and_left_as_it_is(tmp_path: Path, nats_server: NatsServer) -> None:
    for _ in range(2):  # the second run sees what the first one left
        result = clock(tmp_path, nats_server)
        assert result.level == "note"
        assert "warmlane provision" in result.advice


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("nats-server: v2.11.0", "ok"),
        ("nats-server: v2.15.1-RC.1", "ok"),
        ("nats-server: v3.0.0", "ok"),
        ("nats-server: v2.10.26", "missing"),
        ("", "missing"),
    ],
)
def test_versions(text: str, level: str) -> None:
    assert judge_nats_version(text).level == level


@pytest.mark.parametrize(
    ("gpus", "torch", "level", "text"),
    [
        ([], "2.13.0+cpu", "note", "tiny profile"),
        ([GPU], "2.13.0", "ok", ""),
        ([GPU], "2.13.0+cpu", "note", "CPU build"),
        ([GPU], None, "ok", ""),
    ],
)
def test_gpus(gpus: list[GpuInfo], torch: str | None, level: str, text: str) -> None:
    result = judge_gpus(gpus, torch)
    assert result.level == level
    assert text in result.advice
    if gpus:
        assert "H200 (100 of 139 GiB free, GPU-1)" in result.found


def test_production_without_a_card_is_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`warmlane up` would refuse too. With an old driver or a torch without CUDA, every host would fail."""
    with fake_nvml(tmp_path, monkeypatch) as cards:
        cards.set(cards=0)
        without = doctor(tmp_path, "--profile", "production")
        cards.set(cards=2, driver=570)
        old = {found.what: found for found in look_around(tmp_path, profile="production")}
        tiny = {found.what: found for found in look_around(tmp_path)}
    assert without.exit_code == 1
    assert "`warmlane up` cannot run yet: see" in without.output
    assert "slots" in without.output.splitlines()[-1]
    assert "slots" not in old
    cuda = cuda_of_torch()
    assert ("570.65.06" in old["NVIDIA driver"].found, old["NVIDIA driver"].level) == (True, "missing")
    assert tiny["NVIDIA driver"].level == "note"
    assert cuda is None or f"CUDA {cuda}" in old["NVIDIA driver"].found


@pytest.mark.parametrize(
    ("cuda", "driver", "levels", "message"),
    [
        ("13.0", "580.65.06", ("ok", "ok"), "580.65.06; torch is built with CUDA 13.0, which needs 580 or later"),
        ("13.0", "575.51.03", ("note", "missing"), "update the driver to 580 or later"),
        ("12.8", "525.60.13", ("ok", "ok"), "needs 525 or later"),
        ("13.0", None, ("ok", "missing"), "none; torch is built with CUDA 13.0, which needs 580 or later"),
        (None, None, ("ok", "missing"), "torch is built without CUDA"),
        (None, "580.65.06", ("note", "missing"), "install the default build of torch"),
        ("14.0", "580.65.06", ("note", "note"), "docs.nvidia.com"),
    ],
)
def test_the_driver_is_held_to_the_cuda_of_torch(
    cuda: str | None, driver: str | None, levels: tuple[str, str], message: str
) -> None:
    found = [judge_driver(cuda, driver, cards_are_needed=needed) for needed in (False, True)]
    assert tuple(each.level for each in found) == levels
    for each in found:
        assert message in f"{each.found} {each.advice}" or each.level == "ok"
        assert (each.level == "ok") is (each.advice == "")


def test_the_cuda_of_torch_is_read_without_importing_it() -> None:
    code = (
        "from ops.machine.cuda_driver import cuda_of_torch; import sys; print(cuda_of_torch(), 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert printed[1] == "False"
    _, _, build = metadata.version("torch").partition("+")  # the build's own name for its backend, if it has one
    expected = {"cpu": "None", "": printed[0]}.get(build, f"{build[2:-1]}.{build[-1:]}")
    assert printed[0] == expected


def test_the_holders_of_a_card_are_reported() -> None:
    holders = (Holder(pid=7, used_bytes=3 * GIB, name="trainer"), Holder(pid=8, used_bytes=None))
    result = judge_gpus([replace(GPU, holders=holders)], None)
    assert "GPU-1), process 7 (trainer) holds 3.00 GiB, process 8 holds an unknown amount" in result.found


def test_a_card_in_mig_mode_without_an_instance_is_reported() -> None:
    result = judge_gpus([GPU], "2.13.0", ["GPU-2"])
    assert (result.level, "GPU-2 is in MIG mode and has no instance" in result.found) == ("note", True)
    assert "H200" in result.found
    assert "nvidia-smi mig -cgi" in result.advice


def test_what_keeps_a_card_from_being_used_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    result = judge_gpus([GPU], "2.13.0", hidden=["GPU-2"])
    assert (result.level, "GPU-2 is hidden by CUDA_VISIBLE_DEVICES='0'" in result.found) == ("ok", True)
    result = judge_gpus([], "2.13.0", hidden=["GPU-2"])
    assert (result.level, "remove CUDA_VISIBLE_DEVICES" in result.advice) == ("note", True)
    result = judge_gpus([GPU], "2.13.0", broken=["card 1: GPU is lost"])
    assert (result.level, "card 1: GPU is lost" in result.found) == ("note", True)


@pytest.mark.parametrize(
    ("figures", "visible", "text"),
    [
        (
            {"v2_error": pynvml.NVML_ERROR_NOT_SUPPORTED, "read_error": pynvml.NVML_ERROR_NOT_SUPPORTED},
            "0",
            "that it shares with the host free, GPU-fake-1",
        ),
        ({"init_error": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}, "0", "does not work: .*restart the machine"),
        ({"read_error": pynvml.NVML_ERROR_GPU_IS_LOST}, "0", "does not work: card 0: .*has fallen off its bus"),
        ({"cards": 2}, "1", r"GPU-fake-2\); GPU-fake-1 is hidden by CUDA_VISIBLE_DEVICES='1'"),
    ],
    ids=["shared-memory", "updated-and-not-restarted", "lost", "hidden"],
)
def test_the_drivers_messages_about_the_cards_are_reported(
    figures: dict[str, int], visible: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with fake_nvml(tmp_path, monkeypatch) as cards:
        cards.set(**figures)
        assert re.search(text, finding("GPUs", look_around(tmp_path)).found)


@pytest.mark.parametrize(
    ("free_bytes", "writable", "level"),
    [(5 * GIB, True, "ok"), (5 * GIB - 1, True, "note"), (GIB // 2 - 1, True, "missing"), (5 * GIB, False, "missing")],
)
def test_disk(free_bytes: int, writable: bool, level: str) -> None:
    assert judge_disk(Path("/data"), free_bytes, writable).level == level


@pytest.mark.parametrize(("skew_s", "level"), [(0.25, "ok"), (-0.25, "ok"), (0.26, "missing"), (-0.26, "missing")])
def test_skew(skew_s: float, level: str) -> None:
    result = judge_skew(skew_s)
    assert result.level == level
    assert ("behind" in result.found) is (skew_s > 0)


def test_every_problem_comes_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMLANE_NATS_SERVER", os.devnull)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = list(look_around(tmp_path, port=listener.getsockname()[1]))
    assert {each.what for each in found if each.level == "missing"} == {"nats-server", "HTTP port"}
    for each in found:
        assert (each.level == "ok") is (each.advice == ""), each
