import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.generation.errors import InvalidRequest
from contracts.generation.request import validate
from contracts.settings import SettingsError, load_settings, parse_settings
from tests.kit.settings_files import CHECKPOINT, PACKAGED, REMOVE, TINY, changed, refusal


def test_the_packaged_file_holds_the_fixed_parameters() -> None:
    """FR-004, FR-005, FR-006: in both profiles."""
    settings = load_settings()
    for profile in ("tiny", "production"):
        models = settings.catalog(profile).models
        assert models["anisora"].constraints.steps.fixed == 8
        assert models["phr00t"].constraints.steps.fixed == 4
        assert models["phr00t"].constraints.cfg.fixed == 1.0


def test_fixed_values_are_enforced_unless_the_settings_say_otherwise() -> None:
    """FR-007. docs/operate/rollback.md explains the other word."""
    for place in json.loads(PACKAGED)["models"].values():
        assert place["enforcement"] == "reject"
    reporting = parse_settings(changed("models/phr00t/enforcement", "report")).catalog("tiny").models
    assert (reporting["anisora"].enforcement, reporting["phr00t"].enforcement) == ("reject", "report")
    silent = parse_settings(changed("models/phr00t/enforcement", REMOVE)).catalog("tiny").models
    assert silent["phr00t"].enforcement == "reject"


def test_the_packaged_file_keeps_to_the_protocol() -> None:
    windows = load_settings().windows
    assert windows.wait_limit_s == 30  # FR-017, FR-021 c
    assert windows.health_timeout_s == 60  # FR-021 b
    assert load_settings().attempts == 2


def test_aliases_lead_to_the_model() -> None:
    running = load_settings().catalog("tiny")
    for name, entry in running.models.items():
        for known in (name, *entry.aliases):
            assert running.resolve(known) is entry
            assert running.resolve(known.upper()) is running.resolve(known.title()) is entry
    assert running.resolve("Index-AniSora") is running.models["anisora"]
    assert running.resolve("aniso") is None
    assert running.resolve("") is None


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings().catalog("huge")
    assert str(error.value) == "$.models.anisora.profiles: no profile 'huge'; it has production, tiny"


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        # the form: unknown, missing, of another type
        pytest.param("schema", 2, "$.schema", id="schema"),
        pytest.param("modles", {}, "modles", id="unknown-key"),
        pytest.param("models", REMOVE, "models", id="no-models-key"),
        pytest.param("models", [], "$.models", id="models-as-array"),
        pytest.param("models/phr00t", 4, "$.models.phr00t", id="model-as-number"),
        pytest.param("models/phr00t/titel", "x", "`titel` - at `$.models.phr00t`", id="unknown-key-of-a-model"),
        pytest.param("models/phr00t/title", REMOVE, "`title` - at `$.models.phr00t`", id="missing-key-of-a-model"),
        pytest.param("models/phr00t/enforcement", "warn", "$.models.phr00t.enforcement", id="unknown-enforcement"),
        pytest.param("models/phr00t/profiles", 7, "$.models.phr00t.profiles", id="profiles-as-number"),
        pytest.param("models/phr00t/aliases", [7], "$.models.phr00t.aliases", id="alias-as-number"),
        pytest.param(
            "models/phr00t/generation/steps/fixed", "4", "$.models.phr00t.generation.steps.fixed", id="number-as-text"
        ),
        pytest.param(
            "models/phr00t/generation/steps/fixed", 4.5, "$.models.phr00t.generation.steps.fixed", id="half-a-step"
        ),
        pytest.param(TINY, [], "$.models.phr00t.profiles.tiny", id="profile-as-array"),
        pytest.param(
            f"{TINY}/geometry/width/minimum",
            None,
            "$.models.phr00t.profiles.tiny.geometry.width",
            id="a-limit-that-is-missing",
        ),
        pytest.param(
            f"{TINY}/checkpoint/dtype", "fp8", "$.models.phr00t.profiles.tiny.checkpoint.dtype", id="unknown-dtype"
        ),
        pytest.param(
            f"{TINY}/checkpoint/random_weights/experts",
            3,
            "$.models.phr00t.profiles.tiny.checkpoint.random_weights.experts",
            id="three-experts",
        ),
        pytest.param(
            "models/anisora/profiles/production/image/media_types",
            ["image/gif"],
            "$.models.anisora.profiles.production.image.media_types",
            id="a-media-type-that-nobody-reads",
        ),
        # the meaning
        pytest.param("models", {}, "$.models: name at least one model", id="no-model"),
        pytest.param("attempts", 0, "$.attempts", id="no-attempt"),
        pytest.param("lane_queue_max_msgs", 0, "$.lane_queue_max_msgs", id="no-queue"),
        pytest.param("windows/lease_s", 0, "$.windows.lease_s", id="no-lease"),
        pytest.param("windows/drain_s", -1, "$.windows.drain_s", id="negative-time"),
        pytest.param("windows/lease_renew_s", 11, "$.windows.lease_renew_s", id="renewal-too-rare"),
        pytest.param("windows/heartbeat_s", 31, "$.windows.heartbeat_s", id="heartbeat-too-rare"),
        pytest.param("models/An-isora", {}, "$.models.An-isora", id="empty-model"),
        pytest.param("models/phr00t/aliases", ["anisora"], "$.models.phr00t.aliases: 'anisora'", id="alias-is-a-model"),
        pytest.param(
            "models/phr00t/aliases",
            ["index-anisora"],
            "$.models.phr00t.aliases: 'index-anisora' is taken by anisora; upper and lower case are one name",
            id="alias-of-another",
        ),
        pytest.param("models/phr00t/profiles", {}, "$.models.phr00t.profiles: name", id="no-profile"),
        pytest.param(
            "models/phr00t/generation/prompt",
            {"min_chars": 9, "max_chars": 8},
            "$.models.phr00t.generation.prompt",
            id="text-limits-crossed",
        ),
        pytest.param(
            "models/phr00t/generation/negative_prompt",
            {"min_chars": 0, "max_chars": 8, "guided_default": "123456789"},
            "$.models.phr00t.generation.negative_prompt.guided_default: at most 8 characters",
            id="default-longer-than-allowed",
        ),
        pytest.param(
            "models/phr00t/generation/steps",
            {"fixed": 4, "default": 4},
            "$.models.phr00t.generation.steps",
            id="fixed-and-default",
        ),
        pytest.param(
            "models/phr00t/generation/steps", {}, "$.models.phr00t.generation.steps: fixed, or", id="no-limits-at-all"
        ),
        pytest.param(
            "models/phr00t/generation/steps", {"fixed": 0}, "$.models.phr00t.generation.steps: at least", id="no-steps"
        ),
        pytest.param(
            "models/phr00t/generation/cfg",
            {"minimum": -1, "maximum": 2, "default": 1},
            "$.models.phr00t.generation.cfg: at least 0",
            id="negative-cfg",
        ),
        pytest.param(
            "models/phr00t/generation/seed",
            {"minimum": 0, "maximum": 2**32},
            "$.models.phr00t.generation.seed.maximum",
            id="seed-of-33-bits",
        ),
        pytest.param(
            "models/phr00t/generation/seed",
            {"minimum": -1, "maximum": 9},
            "$.models.phr00t.generation.seed: at least 0",
            id="negative-seed",
        ),
        pytest.param(
            f"{TINY}/geometry/width",
            {"default": 96, "minimum": 256, "maximum": 32, "step": 16},
            "$.models.phr00t.profiles.tiny.geometry.width: fixed, or minimum <= maximum",
            id="limits-crossed",
        ),
        pytest.param(
            f"{TINY}/geometry/height",
            {"default": 64, "minimum": 0, "maximum": 256},
            "$.models.phr00t.profiles.tiny.geometry.height: at least 1",
            id="no-height",
        ),
        pytest.param(
            f"{TINY}/geometry/width/step", 0, "$.models.phr00t.profiles.tiny.geometry.width.step", id="step-0"
        ),
        pytest.param(
            f"{TINY}/geometry/width/default",
            REMOVE,
            "$.models.phr00t.profiles.tiny.geometry.width.default: missing",
            id="no-default",
        ),
        pytest.param(
            f"{TINY}/geometry/width/default",
            512,
            "$.models.phr00t.profiles.tiny.geometry.width.default: 512 is outside 32 to 256",
            id="default-outside",
        ),
        pytest.param(
            f"{TINY}/geometry/num_frames/default",
            16,
            "$.models.phr00t.profiles.tiny.geometry.num_frames.default: 16 is not 4 k + 1",
            id="default-off-step",
        ),
        pytest.param(
            f"{TINY}/geometry/max_volume",
            104447,
            "$.models.phr00t.profiles.tiny.geometry.max_volume: at least 104448, the default size's",
            id="default-size-too-large",
        ),
        pytest.param(
            f"{TINY}/image/presence", "optional", "$.models.phr00t.profiles.tiny.image", id="image-without-limits"
        ),
        pytest.param(
            f"{TINY}/timeouts/step_s", 0, "$.models.phr00t.profiles.tiny.timeouts.step_s", id="no-time-for-a-step"
        ),
        pytest.param(
            f"{TINY}/checkpoint/offload", "disk", "$.models.phr00t.profiles.tiny.checkpoint.offload", id="offload"
        ),
        *(
            pytest.param(f"{TINY}/checkpoint/{path}", value, f"{CHECKPOINT}.{place}", id=f"checkpoint-{number}")
            for number, (path, value, place) in enumerate(
                [
                    ("scheduler/kind", "AutoencoderKLWan", "scheduler.kind"),
                    ("scheduler/flow_shift", 0, "scheduler.flow_shift: more than 0"),
                    ("scheduler/sigmas", "karras", "scheduler.sigmas"),
                    (
                        "scheduler",
                        {"kind": "UniPCMultistepScheduler", "flow_shift": 3, "sigmas": "beta"},
                        "scheduler.sigmas: beta only with FlowMatchEulerDiscreteScheduler",
                    ),
                    ("boundary_ratio", 1, "boundary_ratio: between 0 and 1, got 1"),
                    ("boundary_ratio", 0.0, "boundary_ratio: between 0 and 1, got 0"),
                    ("layerwise_casting", "int8", "layerwise_casting"),
                    ("vae_tiling", "yes", "vae_tiling"),
                    ("attention_backend", "fast", "attention_backend"),
                    ("attention_backend", "flash_hub", "attention_backend"),
                    ("prompt_suffix", "x" * 501, "prompt_suffix: at most 500 characters"),
                    ("prompt_suffix", " x", "prompt_suffix: at most 500 characters, without blanks"),
                    ("device_map", 1, "device_map"),
                    ("expected_bytes", -1, "expected_bytes: 0 or more"),
                    ("activation_bytes", -1, "activation_bytes: 0 or more"),
                    ("group_offload", {}, 'group_offload: only with "offload": "group"'),
                    ("group_offload", {"level": "module"}, "group_offload.level"),
                    ("group_offload", {"blocks": 0}, "group_offload.blocks: at least 1"),
                    ("group_offload", {"blocks": 2}, "group_offload.blocks: 1, unless"),
                    ("group_offload", {"level": "block", "blocks": 2}, "group_offload.blocks: 1, unless"),
                    (
                        "group_offload",
                        {"stream": False, "record_stream": True},
                        "group_offload.record_stream: only with stream",
                    ),
                ]
            )
        ),
        *(
            pytest.param(
                f"{TINY}/checkpoint/folder",
                folder,
                "$.models.phr00t.profiles.tiny.checkpoint.folder",
                id=f"folder-{number}",
            )
            for number, folder in enumerate(["", ".", "..", "../models", "/models", "a/b"])
        ),
    ],
)
def test_a_mistake_is_refused_with_its_place(path: str, value: Any, place: str) -> None:
    assert place in refusal(changed(path, value))


def test_without_a_volume_limit_the_limit_of_each_side_is_reported() -> None:
    entry = parse_settings(changed(f"{TINY}/geometry/max_volume", REMOVE)).catalog("tiny").models["phr00t"]
    assert entry.constraints.max_volume == 256 * 256 * 81


@pytest.mark.parametrize("name", ["Anisora", "ani.sora", "ani sora", "", "*", "2d", "ani-sora", "a" * 33])
def test_a_name_that_no_subject_could_carry_is_refused(name: str) -> None:
    document = json.loads(PACKAGED)
    document["models"][name] = document["models"].pop("anisora")
    assert f"$.models.{name}: a model's name" in refusal(json.dumps(document).encode())


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'{"schema": NaN}', b'{"schema": "\xff"}', b"[" * 100_000, PACKAGED[:-9]],
)
def test_a_file_that_is_not_a_settings_file_is_refused(text: bytes) -> None:
    assert refusal(text)


def test_a_mistake_before_the_place_where_the_file_breaks_is_reported() -> None:
    assert "`titel`" in refusal(PACKAGED[:-20].replace(b'"title"', b'"titel"', 1))


def test_a_duplicate_entry_is_refused() -> None:
    twice = PACKAGED.replace(b'"phr00t": {', b'"anisora": {')
    assert refusal(twice) == "'anisora' appears twice in one object"


def test_all_mistakes_are_reported_at_once() -> None:
    document = json.loads(changed("attempts", 0))
    document["windows"]["lease_s"] = 0
    message = refusal(json.dumps(document).encode())
    assert "$.attempts" in message
    assert "$.windows.lease_s" in message


def test_a_file_is_named_in_its_refusal(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    with pytest.raises(SettingsError, match=r"cannot read .*mine\.json: No such file"):
        load_settings(file)
    file.write_bytes(changed("attempts", 0))
    with pytest.raises(SettingsError, match=r"mine\.json: \$\.attempts"):
        load_settings(file)
    file.write_bytes(PACKAGED)
    assert load_settings(file) == load_settings()


def with_third_model(change: Callable[[dict[str, Any]], None] = lambda _: None) -> bytes:
    document = json.loads(PACKAGED)
    third = copy.deepcopy(document["models"]["phr00t"])
    third.update(title="Third", aliases=["trois"])
    third["generation"]["steps"] = {"fixed": 6}
    change(third)
    document["models"]["third"] = third
    return json.dumps(document).encode()


def test_a_third_model_is_an_entry_and_not_code() -> None:
    running = parse_settings(with_third_model()).catalog("tiny")
    accepted = validate({"model": "trois", "prompt": "a fox"}, running)
    assert (accepted.model, accepted.steps) == ("third", 6)
    with pytest.raises(InvalidRequest, match="steps: expected 6, got 4"):
        validate({"model": "third", "prompt": "a fox", "steps": 4}, running)
    with pytest.raises(InvalidRequest, match="there are anisora, phr00t, third"):
        validate({"model": "fourth", "prompt": "a fox"}, running)


def test_a_third_model_may_leave_steps_free() -> None:
    def free(third: dict[str, Any]) -> None:
        third["generation"]["steps"] = {"default": 6, "minimum": 2, "maximum": 12, "step": 2}

    running = parse_settings(with_third_model(free)).catalog("tiny")
    assert validate({"model": "third", "prompt": "a fox", "steps": 12}, running).steps == 12
    with pytest.raises(InvalidRequest, match="steps: expected a multiple of 2, got 7"):
        validate({"model": "third", "prompt": "a fox", "steps": 7}, running)


def test_lanes_that_a_command_line_asks_for_are_those_that_are_wanted() -> None:
    catalog = load_settings(None).catalog("tiny").with_lanes({"anisora": 2})
    assert {name: entry.lanes for name, entry in catalog.models.items()} == {"anisora": 2, "phr00t": 0}
