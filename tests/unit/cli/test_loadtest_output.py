"""What `shoal loadtest` says of a sweep, and the picture of one."""

from pathlib import Path

import pytest

from deploy.commands import loadtest_output as output
from shoal.loadtest.core.latencies import Latencies
from shoal.loadtest.core.report import Report
from shoal.loadtest.driver import Progress
from tests.unit.loadtest.support import report_of

KEPT = report_of(50, 50, requests=50)
BEHIND = report_of(100, 60, requests=100)
SHORT = report_of(200, 60, requests=200, unsent=80)


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ([KEPT, BEHIND], "50.0 answers/s"),
        ([BEHIND], "none: no rate was kept up with"),
        ([KEPT, SHORT, SHORT], "not found (at least 50.0/s): the client was the limit"),
        ([SHORT, SHORT], "not found: the client was the limit"),
    ],
)
def test_the_knee_in_words(reports: list[Report], said: str) -> None:
    assert said in output.knee_text(reports)


def test_a_sweep_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output.show_reports([KEPT, BEHIND], sweep=True)
    told = capsys.readouterr().out
    assert "kept up" in told
    assert "behind" in told
    assert "CLIENT" not in told
    output.show_reports([KEPT, SHORT], sweep=True)
    told = capsys.readouterr().out
    assert "CLIENT *" in told
    assert "use more --processes" in told


def test_shape_of_a_sweep() -> None:
    shape = output.sweep_json([KEPT, BEHIND])
    assert (shape["knee_qps"], shape["knee_is_bounded"]) == (50.0, True)
    assert [step["requests"] for step in shape["steps"]] == [50, 100]


def test_a_picture_is_the_same_each_time(tmp_path: Path) -> None:
    drawn = []
    for name in ("a.svg", "b.svg"):
        output.draw([KEPT, BEHIND, SHORT], tmp_path / name)
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1]
    assert b"</svg>" in drawn[0]


def test_the_view_tells_of_the_last_second(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    view = output.LiveView()
    monkeypatch.setattr(view, "_shown", True)
    monkeypatch.setattr(
        view._live, "update", lambda group, refresh: shown.append(str(group.renderables[-1]))
    )
    now = 100.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    view.begin(KEPT.step, [])
    latencies = Latencies()
    latencies.record_ns(5_000_000)
    for client in (0, 1):
        now += 0.6
        view.watch(Progress(client, answered=60, failed=1, in_flight=3, latencies=latencies))
    (line,) = shown
    assert line.startswith("1 of 1 s, 50/s offered: 100/s answered, 6 in flight, 2 failed, p50 5.0")
