"""How long a request asks to keep its task: the bound, what a repeated request has to say of it, and the record."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from contracts.tasks import KEEP_MAX_S, UnreadableTask, decode_task, encode_task
from tests.kit.records import pending_task
from tests.kit.requests import errors_of, submit
from tests.kit.samples import catalog

LEAST = {"model": "anisora", "prompt": "x"}
TWO_HOURS = replace(catalog(), keep_s=7_200.5)


@pytest.mark.parametrize("keep_s", [60, 7_200])
def test_what_is_within_the_operators_bound_is_taken(keep_s: int) -> None:
    assert submit({**LEAST, "keep_s": keep_s}, TWO_HOURS).keep_s == keep_s


@pytest.mark.parametrize("keep_s", [59, 0, -60, 7_201, 10**30])
def test_what_is_beyond_it_is_refused_with_both_bounds(keep_s: int) -> None:
    (error,) = errors_of({**LEAST, "keep_s": keep_s}, TWO_HOURS)
    assert (error.pointer, error.code) == ("/keep_s", "out_of_range")
    assert error.expected == {"minimum": 60, "maximum": 7_200}
    assert error.message.startswith("keep_s: expected 60 to 7200, got ")


@pytest.mark.parametrize("wrong", [True, 90.0, "2h", [], {}])
def test_what_is_no_whole_number_is_refused(wrong: Any) -> None:
    (error,) = errors_of({**LEAST, "keep_s": wrong}, TWO_HOURS)
    assert (error.pointer, error.code, error.expected) == ("/keep_s", "wrong_type", "whole seconds")


def test_where_everything_goes_sooner_nothing_is_taken() -> None:
    (error,) = errors_of({**LEAST, "keep_s": 60}, replace(catalog(), keep_s=40.0))
    assert error.message == "keep_s: expected nothing: every task is kept for 40 s here, got 60"


def test_it_is_part_of_the_request_and_null_is_as_none() -> None:
    asked, longer = (submit({**LEAST, "keep_s": keep_s}).fingerprint for keep_s in (60, 61))
    none, null = submit(LEAST), submit({**LEAST, "keep_s": None})
    assert none.keep_s is null.keep_s is None
    assert none.fingerprint == null.fingerprint
    assert len({asked, longer, none.fingerprint}) == 3


def test_records_without_it_are_read_and_it_stands_in_those_with_it() -> None:
    kept = pending_task(keep_s=90)
    assert decode_task(encode_task(kept)) == kept
    record = json.loads(encode_task(kept))
    earlier = json.dumps({name: value for name, value in record.items() if name != "keep_s"}).encode()
    assert decode_task(earlier) == pending_task()
    for wrong in (-1, KEEP_MAX_S + 1, 1.5, "90"):
        with pytest.raises(UnreadableTask, match="keep_s"):
            decode_task(json.dumps(record | {"keep_s": wrong}).encode())
