"""Labels of a request: what they may be, and what a repeated request has to say of them."""

from typing import Any

import pytest

from contracts.generation.labels import LABELS_MAX, BadLabel, parse_label
from tests.kit.requests import errors_of, pointers, submit

LEAST = {"model": "anisora", "prompt": "x"}


@pytest.mark.parametrize(
    ("labels", "pointer", "code"),
    [
        ([], "/labels", "wrong_type"),
        ({f"key-{number}": "x" for number in range(LABELS_MAX + 1)}, "/labels", "too_many"),
        ({"": "x"}, "/labels", "bad_label"),
        ({"-begins": "x"}, "/labels", "bad_label"),
        ({"two words": "x"}, "/labels", "bad_label"),
        ({"k" * 64: "x"}, "/labels", "bad_label"),
        ({"schlüssel": "x"}, "/labels", "bad_label"),
        ({"key": ""}, "/labels/key", "bad_label"),
        ({"key": "two\nlines"}, "/labels/key", "bad_label"),
        ({"key": "v" * 64}, "/labels/key", "bad_label"),
        ({"key": None}, "/labels/key", "wrong_type"),
        ({"key": 7}, "/labels/key", "wrong_type"),
    ],
)
def test_what_is_no_label_is_refused_where_it_stands(labels: Any, pointer: str, code: str) -> None:
    assert [(each.pointer, each.code) for each in errors_of({**LEAST, "labels": labels})] == [(pointer, code)]


def test_every_wrong_label_is_named_at_once() -> None:
    wrong = {"b": "", "a": 7, "fine": "x"}
    assert pointers(errors_of({**LEAST, "labels": wrong})) == ["/labels/a", "/labels/b"]


def test_labels_are_kept_as_they_came_and_are_part_of_the_request() -> None:
    labels = {"project": "spring/2026", "shot": "s-07:take@2"}
    labelled = submit({**LEAST, "labels": labels})
    assert labelled.labels == labels
    turned = submit({**LEAST, "labels": dict(reversed(labels.items()))})
    none, empty = submit(LEAST), submit({**LEAST, "labels": {}})
    assert turned.fingerprint == labelled.fingerprint != none.fingerprint == empty.fingerprint


def test_a_filter_splits_at_the_first_colon() -> None:
    assert parse_label("shot:s-07:take@2") == ("shot", "s-07:take@2")
    for text in ("", "shot", ":x", "shot:", "a b:c", "shot:a b", "shot:x\n"):
        with pytest.raises(BadLabel, match="expected KEY:VALUE"):
            parse_label(text)
