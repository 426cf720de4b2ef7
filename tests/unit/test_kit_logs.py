"""What tests read of a log that is being written."""

from pathlib import Path

from tests.kit.support import logged_in, whole_lines


def test_a_line_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text('{"event": "one"}\nnot JSON\n{"event": "tw')
    assert logged_in(log) == [{"event": "one"}]
    assert whole_lines("a\nb") == "a\n"
    assert whole_lines("a") == ""
