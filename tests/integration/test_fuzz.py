"""A short run of `make fuzz`: 300 cases with a fixed seed."""

from pathlib import Path


def test_the_gateway_keeps_to_its_description(tmp_path: Path) -> None:
    # here, because schemathesis takes seconds to import, and every process of a run collects this file
    from tests.drills.fuzz import fuzz, system

    with system(tmp_path) as (gateway, ids):
        report = fuzz(gateway.url, ids, cases=300, seed=20261127)
        assert "Traceback" not in gateway.log()
        assert '"parameters_reported"' in gateway.log()
    print(report.table())
    assert list(report.found.values()) == []
    assert report.cases >= 300
    statuses = {status for tally in report.tallies.values() for status in tally.statuses}
    assert max(statuses) < 500
    # the run gets past authorisation and validation
    assert {200, 202, 400, 404, 422} <= statuses
    assert len(report.tallies) == 51
