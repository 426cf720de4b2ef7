"""`make fuzz`: schemathesis against the OpenAPI document of a running gateway, which it starts.

Every operation gets cases that its description allows. If it has a query or a body, it gets as many cases that its
description does not allow. All come from a printed seed. No answer may be a 5xx, and none may break the description:
status, media type, headers and body. The gateway has to accept what is allowed, and to refuse what is not. Identifiers
of real tasks are mixed in, so that cases get past the 404.

Where a check does not apply, `NOT_APPLIED` says why. `ALSO_FAIR` says which refusals of an allowed request are right.
`UNSAYABLE` says what the fuzz changes in such a request because no description could ask for it.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from msgspec import Struct
from schemathesis import GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks
from schemathesis.specs.openapi.checks import (  # type: ignore[attr-defined]
    AcceptedNegativeData,
    ParameterLocation,
    RejectedPositiveData,
)

from contracts import lifecycle
from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.tasks import FailureCode, VideoFile, encode_task
from contracts.topology import TASKS, lane_stream
from gateway.http.problem_kinds import PROBLEMS
from ops.nats.api_keys import add
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.drills.fuzz_cases import FORM, KINDS, UNSAYABLE, AnyCase, Ids, _is_allowed, _meet
from tests.kit.behind import js_of
from tests.kit.gateway import MODELS, GatewayProcess, report_lane
from tests.kit.records import pending_task
from tests.kit.support import BOUND_S, KEEP_S, reporting_file

CASES: Final = 3_000
APPLIED: Final = (
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.positive_data_acceptance,
    checks.unsupported_method,
    checks.allow_header_conformance,
    checks.ignored_auth,
)
NOT_APPLIED: Final[Mapping[str, str]] = {
    "missing_required_header": "no operation requires a header",
    "object_level_authorization": "it needs two keys of two callers; `test_access.py` has them",
    "use_after_free": "nothing is freed: a cancelled task stays readable until it expires",
    "ensure_resource_availability": "it needs cases that build on each other, and an answer by a worker",
    "max_response_time": "a poll may wait for as long as it was asked to",
}
# What the gateway may answer to an allowed request besides a success or a 404, and why. A 503 by load is not among
# them: lanes are reported warm and their queues are emptied meanwhile.
ALSO_FAIR: Final[Mapping[str, str]] = {
    "range_not_satisfiable": "a range that fits the description may lie beyond the video",
    "precondition_failed": "a tag that fits the description is seldom the present one",
    "task_not_ended": "a task that still waits cannot be submitted again",
    "idempotency_key_reused": "a key that fits the description may have come with another body before",
}


class Tally(Struct):
    """What came back from one operation."""

    cases: int = 0
    statuses: Counter[int] = Counter()


class Found(Struct, frozen=True):
    """A check that failed, and how to reproduce it."""

    operation: str
    title: str
    curl: str


class Report(Struct):
    """The outcome of a run."""

    seed: int
    tallies: dict[str, Tally] = {}
    found: dict[tuple[str, str], Found] = {}
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        return sum(tally.cases for tally in self.tallies.values())

    def table(self) -> str:
        """Operation, cases and statuses, a line each."""
        width = max(map(len, self.tallies), default=0)
        lines = []
        for name, tally in self.tallies.items():
            statuses = "  ".join(f"{status}: {count}" for status, count in sorted(tally.statuses.items()))
            lines.append(f"{name:{width}}  {tally.cases:5}  {statuses}")
        return "\n".join(lines)


def fuzz(
    url: str,
    ids: Ids,
    *,
    cases: int = CASES,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Sends about *cases* cases to the gateway at *url*, with a key that may do everything; returns the outcome."""
    report = Report(seed=seed)
    started_s, round_ = time.monotonic(), 0
    headers = {"Authorization": f"Bearer {ids.key.text}"}
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    schema.config.generation.update(with_security_parameters=False)  # the fuzz sends a key itself
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    strategies = [
        (operation, mode)
        for operation in operations
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        # every path and every header is a string: by its description none can be wrong
        if (mode is GenerationMode.POSITIVE or operation.query or operation.body)
        and not (mode is GenerationMode.POSITIVE and operation.path == "/v1/videos/sync")
    ]
    session = requests.Session()
    while strategies and report.cases < cases:
        count = -(-(cases - report.cases) // len(strategies))
        more = []
        for operation, mode in strategies:
            # an operation without parameters has one allowed case, and none that its description does not allow
            if _run(url, operation, mode, count, report, session, ids, headers, round_) >= count:
                more.append((operation, mode))
            say(f"{report.cases:6} cases, {time.monotonic() - started_s:4.0f} s  {operation.label}, {mode.value}")
        strategies, round_ = more, round_ + 1
    report.seconds = time.monotonic() - started_s
    return report


def _run(
    url: str,
    operation: Any,
    mode: GenerationMode,
    count: int,
    report: Report,
    session: requests.Session,
    ids: Ids,
    headers: Mapping[str, str],
    round_: int,
) -> int:
    """Sends up to *count* cases; returns how many there were."""
    tally = report.tallies.setdefault(operation.label, Tally(statuses=Counter()))
    before = tally.cases
    chance = random.Random(f"{report.seed} {operation.label} {mode}")

    @hypothesis.seed(report.seed + round_)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def one(case: AnyCase) -> None:
        # to JSON Schema the bytes of a file are never wrong, and every field of a form is a string
        hypothesis.assume(mode is GenerationMode.POSITIVE or case.media_type not in (FORM, *KINDS))
        hypothesis.assume(not (case.media_type == FORM and case.path.startswith("/v1/")))
        if mode is GenerationMode.POSITIVE or _is_allowed(case, ParameterLocation.PATH):
            _meet(case, ids, chance)
        if case.path == "/tasks/events":  # the stream would go on for ever
            case.query = {"wait": 0} | (case.query or {})
        try:
            response = case.call(session=session, headers=dict(headers), timeout=20)
            tally.cases += 1
            tally.statuses[response.status_code] += 1
            if operation.method.upper() == "PUT":  # or the next requests would wait for the degraded worker
                for model in MODELS:
                    session.put(f"{url}/admin/lanes/{model}/mode", json={"mode": "auto"}, headers=headers, timeout=20)
            case.validate_response(response, checks=list(APPLIED), headers=dict(headers))
        except FailureGroup as group:
            for failure in group.exceptions:
                if isinstance(failure, AcceptedNegativeData) and mode is GenerationMode.POSITIVE:
                    continue  # to schemathesis a file that was put into the case is not allowed
                if not (isinstance(failure, RejectedPositiveData) and _is_fair(response)):
                    _note(report, operation.label, failure, case)

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # an operation in which nothing can be wrong
        one()
    return tally.cases - before


def _is_fair(response: Response) -> bool:
    if not response.content:  # the answer to a HEAD
        return response.status_code in {PROBLEMS[code].status for code in ALSO_FAIR}
    with contextlib.suppress(ValueError):
        body = response.json()
        return body.get("error", body).get("code") in ALSO_FAIR
    return False


def _note(report: Report, operation: str, failure: BaseException, case: AnyCase) -> None:
    title = f"{type(failure).__name__}: {getattr(failure, 'title', '')}: {failure}"
    report.found.setdefault((operation, type(failure).__name__), Found(operation, title, case.as_curl_command()))


async def _prepare(gateway: GatewayProcess) -> Ids:
    link = await NatsLink.connect(gateway.nats.url, name="test")
    try:
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        for model in MODELS:
            await report_lane(link, model, LaneState.WARM)
        now = datetime.now(UTC)
        ids = Ids(
            key=await add(link, "fuzz", ("admin",), rate_per_s=None, now=now),
            pending="01890a5d-ac96-774b-bcce-b302099a8001",
            done="01890a5d-ac96-774b-bcce-b302099a8002",
            failed="01890a5d-ac96-774b-bcce-b302099a8003",
        )
        times = {"created_at": now, "queued_at": now, "deadline_at": now + timedelta(hours=1)}
        waits = pending_task(ids.pending, **times)
        claimed = lifecycle.claim(pending_task(ids.done, **times), owner="o", worker="w", lease_s=60, now=now)
        content = b"not really a video"
        video = VideoFile(
            path=claimed.video_path, bytes=len(content), sha256="ab" * 32, width=96, height=64, frames=17, fps=16
        )
        (gateway.artifacts / "videos").mkdir(parents=True, exist_ok=True)
        (gateway.artifacts / video.path).write_bytes(content)
        done = lifecycle.finish(claimed, video=video, memory=None, now=now)
        failed = lifecycle.fail(
            pending_task(ids.failed, **times), code=FailureCode.CANCELLED, message="cancelled", now=now
        )
        for task in (waits, done, failed):
            await link.entries.create(TASKS, task.id, encode_task(task))
        return ids
    finally:
        await link.close()


async def _keep_warm(url: str, stop: threading.Event) -> None:
    """Plays the lanes: they are warm, and their queues are never full."""
    link = await NatsLink.connect(url, name="test")
    while not stop.is_set():
        for model in MODELS:
            await report_lane(link, model, LaneState.WARM)
            await js_of(link).purge_stream(lane_stream(model))
        await asyncio.to_thread(stop.wait, 2.0)
    await link.close()


@contextlib.contextmanager
def system(folder: Path) -> Iterator[tuple[GatewayProcess, Ids]]:
    """A gateway to fuzz: both models have a warm lane, and there is a task of every kind.

    One model refuses wrong fixed values, the other replaces them.
    """
    gateway = GatewayProcess(folder)
    stop = threading.Event()
    with contextlib.ExitStack() as leave:
        leave.callback(gateway.nats.stop)
        gateway.nats.start()
        ids = asyncio.run(_prepare(gateway))
        leave.callback(gateway.stop)
        gateway.start(
            "--webhooks-allow",
            "127.0.0.0/8",
            "--keep",
            f"{KEEP_S:g}s",
            "--settings",
            str(reporting_file(folder, "anisora")),
        )
        warming = threading.Thread(target=lambda: asyncio.run(_keep_warm(gateway.nats.url, stop)))
        warming.start()
        leave.callback(warming.join)
        leave.callback(stop.set)
        yield gateway, ids


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to see it again")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder, system(Path(folder)) as (gateway, ids):
        report = fuzz(gateway.url, ids, cases=given.cases, seed=seed, say=print)
        alive = httpx.get(f"{gateway.url}/healthz", timeout=BOUND_S).status_code == 200
    print()
    print(report.table())
    print(f"\n{report.cases} cases in {report.seconds:.0f} s; {len(report.found)} kinds of failure; seed {seed}")
    for found in report.found.values():
        print(f"\n{found.operation}: {found.title}\n  {found.curl}")
    for title, reasons in (
        ("checks that do not apply", NOT_APPLIED),
        ("refusals that are right", ALSO_FAIR),
        ("what cases that are to be accepted are given", UNSAYABLE),
    ):
        print(f"\n{title}:")
        for name, why in reasons.items():
            print(f"  {name}: {why}")
    return 0 if alive and not report.found and report.cases >= given.cases else 1


if __name__ == "__main__":
    sys.exit(main())
