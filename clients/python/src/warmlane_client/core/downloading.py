"""Downloads a video into a file: whole and checked, or not at all. A download that broke off is resumed."""

import re
from typing import Final

from warmlane_client.core import effects
from warmlane_client.core.answers import failure
from warmlane_client.core.calls import task_path
from warmlane_client.core.effects import Call, Flow, NoReply, Open, Reply, ReportBytes, Restart, Write
from warmlane_client.core.retries import Patience, Tries
from warmlane_client.errors import DownloadDamaged, NoVideo, RequestRefused, WarmlaneError
from warmlane_client.models import Task, VideoMade

PARTIAL: Final = 206
FOUND: Final = 302
PRECONDITION_FAILED: Final = 412
RANGE_NOT_SATISFIABLE: Final = 416
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Downloading:
    """The video of *task*, of which the file in hand has *there* bytes already."""

    def __init__(self, task: Task, patience: Patience, *, there: int) -> None:
        """Raises NoVideo for a task that has none."""
        if task.video is None:
            raise NoVideo(task)
        self._task, self._video, self._patience = task, task.video, patience
        self._done = there if there <= task.video.bytes else 0
        self._resumed = there > 0
        self._stale = there > task.video.bytes
        self._from_gateway = False

    def until_whole(self) -> Flow[None]:
        """The file in hand gets its name, with the whole video in it.

        1. The client asks for the missing bytes by their range, with `If-Match`, since the tag of a video is its hash.
        2. It connects again after a break: `lost_attempts` times before the first byte, and for `lost_s` after the
           newest one.
        3. It throws away, once, what an earlier download left and does not fit.
        4. It does not follow a link to an object store, whose certificate may not be trusted here.

        Raises DownloadDamaged, and any error that does not pass by itself.
        """
        if self._stale:
            yield Restart()
        yield from self._bytes()
        if (yield from effects.seal(self._video.sha256)):
            return
        if self._resumed:  # 3
            yield from self._anew()
            yield from self._bytes()
            if (yield from effects.seal(self._video.sha256)):
                return
        raise DownloadDamaged(f"the video of task {self._task.id} arrived damaged; download it again")

    def _bytes(self) -> Flow[None]:
        tries = Tries(self._patience, repeatable=True, begun_s=(yield from effects.now()))
        yield ReportBytes(self._done, self._video.bytes)
        while self._done < self._video.bytes:
            outcome: Reply | NoReply = yield Open(
                _call(self._task, self._video, self._done, from_gateway=self._from_gateway)
            )
            if isinstance(outcome, Reply) and outcome.status == FOUND and not self._from_gateway:  # 4
                self._from_gateway = True
                continue
            if isinstance(outcome, Reply) and outcome.is_success:
                if self._done and not _continues(outcome, self._done):
                    yield from self._anew()
                before = self._done
                lost = yield from self._pieces()
                if lost is None:
                    return
                if self._done > before:  # the gateway is there, and may be restarting
                    tries = Tries(self._patience, repeatable=True, begun_s=lost.at_s, while_lost=True)
                outcome = lost
            error = failure(outcome)
            if self._done and _does_not_fit(error):
                yield from self._anew()
                continue
            pause = tries.pause_after(error, outcome.at_s)
            if pause is None:
                raise error
            yield pause

    def _pieces(self) -> Flow[NoReply | None]:
        """Writes the opened answer to the file in hand. Returns what broke it off, if anything did."""
        while True:
            piece = yield from effects.read()
            if isinstance(piece, NoReply):
                return piece
            if piece.content is None:
                return None
            yield Write(piece.content)
            self._done += len(piece.content)
            yield ReportBytes(self._done, self._video.bytes)
            if self._done > self._video.bytes:
                return None

    def _anew(self) -> Flow[None]:
        self._done, self._resumed = 0, False
        yield Restart()


def _call(task: Task, video: VideoMade, done: int, *, from_gateway: bool) -> Call:
    headers = {"Accept": "video/mp4", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Match": f'"{video.sha256}"'}
    params: dict[str, str | list[str]] = {"redirect": "false"} if from_gateway else {}
    return Call(method="GET", path=f"{task_path(task.id)}/video", params=params, headers=headers)


def _continues(answer: Reply, done: int) -> bool:
    """Whether *answer* goes on after *done* bytes."""
    found = _CONTENT_RANGE.match(answer.headers.get("content-range", ""))
    return answer.status == PARTIAL and found is not None and int(found[1]) == done


def _does_not_fit(error: WarmlaneError) -> bool:
    return isinstance(error, RequestRefused) and error.status in (PRECONDITION_FAILED, RANGE_NOT_SATISFIABLE)
