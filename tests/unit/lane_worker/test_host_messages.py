"""The bytes on the pipe, pinned: a change here is a change of the protocol between a worker and its host."""

from collections.abc import Callable
from typing import get_args

import pytest

from contracts.checkpoints import Checkpoint, RandomWeights, Scheduler
from contracts.memory import MemoryReading
from contracts.tasks import GenerationParameters, ImageReference
from lane_worker.forking import host_messages as m

MEMORY = MemoryReading(rss_bytes=1, cleanup_s=0.5)
# the reading as it stands in every message that carries one
READING = (
    b"\x8c\xa9rss_bytes\x01\xb4cuda_allocated_bytes\xc0\xb3cuda_reserved_bytes\xc0\xb9cuda_peak_allocated_bytes\xc0"
    b"\xa9cleanup_s\xcb?\xe0\x00\x00\x00\x00\x00\x00\xaerss_peak_bytes\xc0\xb8cuda_peak_reserved_bytes\xc0"
    b"\xb9cuda_inactive_split_bytes\xc0\xb2cuda_alloc_retries\xc0\xa9cuda_ooms\xc0\xb1device_used_bytes\xc0"
    b"\xb1device_free_bytes\xc0"
)
CHECKPOINT = Checkpoint(
    pipeline="WanPipeline",
    folder="tiny",
    dtype="float32",
    scheduler=Scheduler(kind="UniPCMultistepScheduler", flow_shift=3.0),
    random_weights=RandomWeights(seed=1),
)
CHECKPOINT_BYTES = (
    b"\x8f\xa8pipeline\xabWanPi"
    b"peline\xa6folder\xa4tiny\xa5dtype\xa7float32\xa9scheduler\x83\xa4kind\xb7UniPCMultistepScheduler"
    b"\xaaflow_shift\xcb@\x08\x00\x00\x00\x00\x00\x00\xa6sigmas\xa4even\xa7offload\xa4none\xadgroup_offload\xc0"
    b"\xaadevice_map\xc2\xb1layerwise_casting\xc0\xaavae_tiling\xc2\xb1attention_backend\xa6native\xadprompt_suffix\xa0"
    b"\xaeexpected_bytes\x00\xb0activation_bytes\x00\xaeboundary_ratio\xc0\xaerandom_weights\x82\xa4seed\x01\xa7experts\x01"
)
NOTE = m.SlotNote(8, 77, "degraded", 5, "anisora", "t", 1)
PARAMETERS = GenerationParameters(
    prompt="é",
    negative_prompt="",
    image=ImageReference(sha256="ab" * 32, media_type="image/png", bytes=2, width=3, height=4),
    width=32,
    height=16,
    num_frames=5,
    fps=8,
    seed=4294967295,
    steps=4,
    cfg=1.0,
)
TO_CHILD: list[tuple[m.ToChild, bytes]] = [
    (
        m.Load("anisora", CHECKPOINT, "/models", 0.5, 2.0),
        b"\x00\x00\x01\x9b\x86\xa4type\xa4load\xa5model\xa7anisora\xaacheckpoint"
        + CHECKPOINT_BYTES
        + b"\xaamodels_dir\xa7/models\xacstep_seconds"
        b"\xcb?\xe0\x00\x00\x00\x00\x00\x00"
        b"\xacload_seconds\xcb@\x00\x00\x00\x00\x00\x00\x00",
    ),
    (
        m.Generate("t", 1, PARAMETERS, "/v.mp4", "/i"),
        b"\x00\x00\x01\x22\x86\xa4type\xa8generate\xa7task_id\xa1t\xa7attempt\x01\xaaparameters\x8a\xa6pr"
        b"ompt\xa2\xc3\xa9\xafnegative_prompt\xa0\xa5image\x85\xa6sha256\xd9@"
        + b"ab"
        * 32
        + b"\xaamedia_type\xa9image/png"
        b"\xa5bytes\x02\xa5width\x03\xa6height\x04\xa5width \xa6height\x10\xaanum_frames\x05\xa3fps\x08"
        b"\xa4seed\xce\xff\xff\xff\xff\xa5steps\x04\xa3cfg\xcb?\xf0\x00\x00\x00\x00\x00\x00\xaavideo_path"
        b"\xa6/v.mp4\xaaimage_path\xa2/i",
    ),
    (m.Unload(), b"\x00\x00\x00\r\x81\xa4type\xa6unload"),
    (m.Cancel("t"), b"\x00\x00\x00\x17\x82\xa4type\xa6cancel\xa7task_id\xa1t"),
    (m.Ping(7), b"\x00\x00\x00\x13\x82\xa4type\xa4ping\xa6number\x07"),
    (m.Exit(), b"\x00\x00\x00\x0b\x81\xa4type\xa4exit"),
]
FROM_CHILD: list[tuple[m.FromChild, bytes]] = [
    (
        m.Ready(9, NOTE),
        b"\x00\x00\x00y\x84\xa4type\xa5ready\xa3pid\t\xaaunfinished\x89\xa3pid\x08\xa7startedM\xa4role"
        b"\xa8degraded\xa4term\x05\xa5model\xa7anisora\xa7task_id\xa1t\xa7attempt\x01\xa6worker\xa0\xa4host\xa0"
        b"\xa9rehearsed\xc0",
    ),
    (
        m.Ready(9, None, m.Rehearsed(0.5, "no")),
        b"\x00\x00\x00\x42\x84\xa4type\xa5ready\xa3pid\t\xaaunfinished\xc0\xa9rehearsed\x82\xa7seconds"
        b"\xcb?\xe0\x00\x00\x00\x00\x00\x00\xa5error\xa2no",
    ),
    (m.SlotBusy(None), b"\x00\x00\x00\x18\x82\xa4type\xa9slot_busy\xa6holder\xc0"),
    (
        m.SlotBusy(NOTE),
        b"\x00\x00\x00i\x82\xa4type\xa9slot_busy\xa6holder\x89\xa3pid\x08\xa7startedM\xa4role\xa8degraded"
        b"\xa4term\x05\xa5model\xa7anisora\xa7task_id\xa1t\xa7attempt\x01\xa6worker\xa0\xa4host\xa0",
    ),
    (
        m.Unloaded(("vae",), 7, 0.25, MEMORY),
        b"\x00\x00\x01\x32\x85\xa4type\xa8unloaded\xa5alive\x91\xa3vae\xafallocated_bytes\x07\xa7seconds"
        b"\xcb?\xd0\x00\x00\x00\x00\x00\x00\xa6memory" + READING,
    ),
    (
        m.Loaded("anisora", 1.5, MEMORY, 1.25, 0.0),
        b"\x00\x00\x01\x42\x86\xa4type\xa6loaded\xa5model\xa7anisora\xa7seconds\xcb?\xf8\x00\x00\x00\x00"
        b"\x00\x00\xa6memory" + READING + b"\xa6read_s\xcb?\xf4\x00\x00\x00\x00\x00\x00\xa6copy_s"
        b"\xcb\x00\x00\x00\x00\x00\x00\x00\x00",
    ),
    (
        m.StepFinished("t", 0, 8, 1700000000.25),
        b"\x00\x00\x004\x85\xa4type\xa8progress\xa7task_id\xa1t\xa4step\x00\xa5steps\x08\xa4at_s\xcbA\xd9"
        b"T\xfc@\x10\x00\x00",
    ),
    (
        m.Finished("t", m.WrittenVideo(5, "cd", 32, 16, 5, 8, b"RIFF"), 1.5, 0.5, MEMORY),
        b"\x00\x00\x01\x7a\x86\xa4type\xa8finished\xa7task_id\xa1t\xa5video\x87\xa5bytes\x05\xa6sha256"
        b"\xa2cd\xa5width \xa6height\x10\xa6frames\x05\xa3fps\x08\xa9thumbnail\xc4\x04RIFF"
        b"\xabinference_s\xcb?\xf8\x00\x00\x00\x00"
        b"\x00\x00\xa8encode_s\xcb?\xe0\x00\x00\x00\x00\x00\x00\xa6memory" + READING,
    ),
    (
        m.Cancelled("t", MEMORY),
        b"\x00\x00\x01\x10\x83\xa4type\xa9cancelled\xa7task_id\xa1t\xa6memory" + READING,
    ),
    (
        m.Failed(None, "out_of_memory", "no", MEMORY, True, "/oom/x"),
        b"\x00\x00\x01\x4a\x88\xa4type\xa6failed\xa7task_id\xc0\xa4code\xadout_of_memory\xa7message\xa2no"
        b"\xa6memory" + READING + b"\xa5fatal\xc3\xa8snapshot\xa6/oom/x\xa7lasting\xc2",
    ),
    (m.Pong(7), b"\x00\x00\x00\x13\x82\xa4type\xa4pong\xa6number\x07"),
]
FORK = (
    b"\x8a\xa4type\xa4fork\xa4slot\xa5cpu-0\xa8lock_dir\xa6/locks\xablock_wait_s"
    b"\xcb@\x14\x00\x00\x00\x00\x00\x00\xa4role\xa8degraded\xa4term\x03"
    b"\xa7oom_dir\xa4/oom\xadoom_snapshots\x02\xa8rehearse\x91" + CHECKPOINT_BYTES + b"\xa6worker\xa6lane-0"
)


@pytest.mark.parametrize(("message", "pinned"), [*TO_CHILD, *FROM_CHILD], ids=lambda value: type(value).__name__)
def test_the_bytes_of_every_message(message: m.ToChild | m.FromChild, pinned: bytes) -> None:
    assert m.frame(message) == pinned


def test_every_kind_of_message_is_pinned() -> None:
    assert {type(message) for message, _ in TO_CHILD} == set(get_args(m.ToChild))
    assert {type(message) for message, _ in FROM_CHILD} == set(get_args(m.FromChild))


@pytest.mark.parametrize(("message", "pinned"), TO_CHILD)
def test_the_child_reads_what_the_parent_wrote(message: m.ToChild, pinned: bytes) -> None:
    assert m.body_length(pinned[:4]) == len(pinned) - 4
    assert m.decode_to_child(pinned[4:]) == message


@pytest.mark.parametrize(("message", "pinned"), FROM_CHILD)
def test_the_parent_reads_what_the_child_wrote(message: m.FromChild, pinned: bytes) -> None:
    assert m.body_length(pinned[:4]) == len(pinned) - 4
    assert m.decode_from_child(pinned[4:]) == message


def test_the_request_to_the_fork_server() -> None:
    request = m.Fork("cpu-0", "/locks", 5.0, "degraded", 3, "/oom", 2, (CHECKPOINT,), "lane-0")
    assert m.encode_fork(request) == FORK
    assert m.decode_fork(FORK) == request


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="not-messagepack"),
        pytest.param(b"\x81\xa4type\xa7unknown", id="unknown-tag"),
        pytest.param(b"\x81\xa4type\xa4ping", id="field-missing"),
        pytest.param(b"\x82\xa4type\xa6cancel\xa7task_id\xa1\xff", id="bad-utf8"),
        pytest.param(b"\x82\xa4type\xa4ping\xa6number\x07\x00", id="more-behind"),
    ],
)
@pytest.mark.parametrize("decode", [m.decode_to_child, m.decode_from_child, m.decode_fork])
def test_anything_else_is_a_bad_message(decode: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(m.BadMessage):
        decode(body)


def test_lengths_over_the_limit_are_refused_on_both_sides() -> None:
    with pytest.raises(m.BadMessage, match="claims 1048577 bytes"):
        m.body_length(m.LENGTH.pack(m.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(m.BadMessage, match="over the limit"):
        m.frame(m.Cancel("x" * m.MAX_MESSAGE_BYTES))


@pytest.mark.parametrize("decode", [m.decode_to_child, m.decode_from_child, m.decode_fork])
@pytest.mark.parametrize("deep", [b"\x91", b"\x81\xa1x", b"\xdd\0\0\0\1", b"\xdf\0\0\0\1\x92\xc0"])
def test_a_message_that_nests_too_deeply_is_none(decode: Callable[[bytes], object], deep: bytes) -> None:
    with pytest.raises(m.BadMessage, match="nested too deeply"):
        decode(b"\x81\xa7unknown" + deep * 99_999 + b"\xc0")
