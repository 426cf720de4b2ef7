"""What a pipeline host rehearses (ADR 0029)."""

from msgspec.structs import replace

from contracts.checkpoints import Checkpoint, GroupOffload, Scheduler
from contracts.settings import load_settings
from lane_worker.residence.rehearsal import to_rehearse

CHECKPOINT = Checkpoint(
    pipeline="WanPipeline",
    folder="large",
    dtype="bfloat16",
    scheduler=Scheduler(kind="UniPCMultistepScheduler", flow_shift=3.0),
    expected_bytes=69_000_000_000,
    boundary_ratio=0.9,
    attention_backend="flash",
    prompt_suffix="more",
)


def test_what_runs_the_same_code_is_rehearsed_once() -> None:
    other = replace(
        CHECKPOINT,
        folder="other",
        boundary_ratio=None,
        expected_bytes=1,
        prompt_suffix="",
        attention_backend="native",
        scheduler=Scheduler(kind="UniPCMultistepScheduler", flow_shift=8.0),
    )
    (rehearsed,) = to_rehearse([CHECKPOINT, other])
    assert (rehearsed.pipeline, rehearsed.dtype, rehearsed.attention_backend) == ("WanPipeline", "bfloat16", "native")


def test_another_class_type_scheduler_or_offload_is_rehearsed_too() -> None:
    others = (
        replace(CHECKPOINT, pipeline="WanVACEPipeline"),
        replace(CHECKPOINT, dtype="float16"),
        replace(CHECKPOINT, scheduler=Scheduler(kind="FlowMatchEulerDiscreteScheduler", flow_shift=3.0)),
        replace(CHECKPOINT, offload="group", group_offload=GroupOffload()),
        replace(CHECKPOINT, layerwise_casting="float8_e4m3fn"),
    )
    assert len(to_rehearse([CHECKPOINT, *others])) == 6


def test_every_packaged_model_is_rehearsed() -> None:
    settings = load_settings()
    for profile in ("tiny", "production"):
        models = settings.catalog(profile).models.values()
        rehearsed = {each.pipeline for each in to_rehearse(entry.checkpoint for entry in models)}
        assert rehearsed == {entry.checkpoint.pipeline for entry in models}
