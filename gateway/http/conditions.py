"""What a client makes its request depend on: `If-Match` and `If-None-Match` (RFC 9110 §13). Pure.

A tag of this gateway is the revision, then what else changes the representation, then the encoding, with hyphens
between. `"7-3-4.2-gzip"` is a waiting task at revision 7, third in its queue with an expected wait of 4.2 s,
compressed. `"9-12.5"` is a running task at revision 9, with 12.5 s left. For a read, the gateway compares whole tags.
For a change, it compares only the revision: a client changes neither the task's place nor an encoding.
"""

from typing import Any, Final, Literal

from litestar import Request
from msgspec import Struct
from werkzeug.datastructures import ETags
from werkzeug.http import parse_etags

from gateway.http.problems import ProblemError

GZIP: Final = "gzip"
Verdict = Literal["go on", "not modified", "failed"]


class Conditions(Struct, frozen=True):
    """The conditions of one request; None for a header that it does not have."""

    if_match: ETags | None = None
    if_none_match: ETags | None = None

    @classmethod
    def of(cls, if_match: str | None, if_none_match: str | None) -> "Conditions":
        """The conditions of two headers, each with all of its lines; None for an absent header."""
        return cls(_tags(if_match), _tags(if_none_match))

    @property
    def revisions(self) -> frozenset[int]:
        """The revisions that `If-None-Match` names."""
        tags = set() if self.if_none_match is None else self.if_none_match.as_set(include_weak=True)
        found = (_revision(tag) for tag in tags)
        return frozenset(revision for revision in found if revision is not None)


def to_read(conditions: Conditions, tag: str | None) -> Verdict:
    """How to answer a GET or HEAD of a representation that has the strong *tag*, or no tag (RFC 9110 §13.2.2).

    1. If-Match has no tag that is strongly equal: failed.
    2. If-None-Match has one that is weakly equal: not modified.
    3. Go on.
    """
    wanted, known = conditions.if_match, conditions.if_none_match
    if wanted is not None and not (wanted.star_tag or (tag is not None and wanted.contains(tag))):  # 1
        return "failed"
    if known is not None and (known.star_tag or (tag is not None and known.contains_weak(tag))):  # 2
        return "not modified"
    return "go on"  # 3


def to_change(conditions: Conditions, revision: int | None) -> Verdict:
    """Whether the resource at *revision* may be changed or deleted; *revision* is None where there is no resource.

    1. If-Match has no strong tag of the revision: failed.
    2. If-None-Match has a tag of it, weak or strong: failed.
    3. Go on.
    """
    wanted, known = conditions.if_match, conditions.if_none_match
    exists = revision is not None
    if wanted is not None and not (exists and (wanted.star_tag or revision in map(_revision, wanted.as_set()))):  # 1
        return "failed"
    if known is not None and exists and (known.star_tag or revision in conditions.revisions):  # 2
        return "failed"
    return "go on"  # 3


def conditions_of(request: Request[Any, Any, Any]) -> Conditions:
    """The conditions of *request*."""
    headers = request.headers
    if "if-match" not in headers and "if-none-match" not in headers:
        return _NONE
    lines = (headers.getall(name, []) for name in ("if-match", "if-none-match"))
    return Conditions.of(*(", ".join(each) if each else None for each in lines))


def require_to_change(conditions: Conditions, revision: int | None) -> None:
    """Raises the problem `precondition_failed` unless the resource at *revision* may be changed."""
    if to_change(conditions, revision) == "failed":
        raise precondition_failed(None if revision is None else f'"{revision}"')


def precondition_failed(etag: str | None) -> ProblemError:
    """The problem; *etag* is what `If-Match` would have to name."""
    if etag is None:
        return ProblemError("precondition_failed", "the resource has no tag; leave If-Match out")
    return ProblemError("precondition_failed", f"it is now at {etag}; GET it and decide again", headers={"ETag": etag})


def tag_of(etag: str) -> str:
    """The opaque part of a strong *etag* of this gateway."""
    return etag[1:-1]


def encoded(etag: str, encoding: str) -> str:
    """The strong *etag* of the same representation in *encoding*."""
    return f'"{tag_of(etag)}-{encoding}"'


_NONE: Final = Conditions()


def _tags(header: str | None) -> ETags | None:
    return None if header is None else parse_etags(header.strip())


def _revision(tag: str | None) -> int | None:
    text = (tag or "").partition("-")[0]  # werkzeug has None for an empty tag
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
