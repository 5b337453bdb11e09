"""What `shoal loadtest` shows: a live view, its reports, a picture of a sweep."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.commands.output import console, show, table
from shoal.loadtest.core.knee import kept_up, knee_is_bounded, knee_qps
from shoal.loadtest.core.latencies import Latencies
from shoal.loadtest.core.report import Report
from shoal.loadtest.core.schedule import Step
from shoal.loadtest.driver import Progress

_LOOK_S = 1.0
ADVICE = "use more --processes, a lower rate, or a machine of its own for the client"
_COLUMNS = (
    *("offered", "goodput", "p50 ms", "p99 ms", "p99.9 ms"),
    *("failed", "partial", "cores", "verdict"),
)


class LiveView:
    """The last second of a running step, on stderr where that is a terminal.

    A context manager.
    """

    def __init__(self) -> None:
        self._live = Live(console=console(stderr=True), transient=True, auto_refresh=False)
        self._shown = self._live.console.is_terminal
        self._reports: Sequence[Report] = ()
        self._step = Step(0, 0.0, 0.0)
        self._began = self._looked = 0.0
        self._answered = self._failed = 0
        self._in_flight: dict[int, int] = {}
        self._latencies = Latencies()

    def __enter__(self) -> "LiveView":
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._live.stop()

    def begin(self, step: Step, reports: Sequence[Report]) -> None:
        """A step begins, after these."""
        self._step, self._reports = step, reports
        self._began = time.monotonic()
        self._in_flight.clear()
        self._forget()

    def watch(self, progress: Progress) -> None:
        """A client told how it gets on."""
        self._answered += progress.answered
        self._failed += progress.failed
        self._in_flight[progress.client] = progress.in_flight
        self._latencies.add(progress.latencies)
        if self._shown and time.monotonic() - self._looked >= _LOOK_S:
            self._live.update(self._picture(), refresh=True)
            self._forget()

    def _forget(self) -> None:
        self._looked = time.monotonic()
        self._answered = self._failed = 0
        self._latencies = Latencies()

    def _picture(self) -> Group:
        now, step = time.monotonic(), self._step
        what = (
            f"{step.in_flight} callers" if step.in_flight else f"{step.rate_per_s:,.0f}/s offered"
        )
        line = Text(
            f"{now - self._began:.0f} of {step.warm_up_s + step.duration_s:.0f} s, {what}: "
            f"{self._answered / (now - self._looked):,.0f}/s answered, "
            f"{sum(self._in_flight.values()):,} in flight, {self._failed:,} failed, "
            f"{latency_text(self._latencies)}"
        )
        return Group(*([steps_table(self._reports)] if self._reports else []), line)


def latency_text(latencies: Latencies) -> str:
    """Percentiles on one line."""
    known = latencies.as_json()
    named = zip(("p50", "p90", "p99", "p99.9"), known.values(), strict=True)
    return ", ".join(f"{name} {_ms(value)} ms" for name, value in named)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def show_reports(reports: Sequence[Report], *, sweep: bool) -> None:
    """The figures for a person, on stdout."""
    if not sweep:
        typer.echo(report_text(reports[0]))
        return
    show(steps_table(reports))
    if any(report.limits for report in reports):
        typer.echo(f"*          THE CLIENT WAS THE LIMIT, or a part of it: {ADVICE}")
    typer.echo(knee_text(reports))


def report_text(report: Report) -> str:
    """One step, a line for each thing to know."""
    tally = report.tally
    failed = ", ".join(f"{count:,} {code}" for code, count in report.errors_by_code.items())
    lines = [
        f"requests   {tally.requests:,} in {report.step.duration_s:g} s: {report.errors:,} failed"
        f"{f' ({failed})' if failed else ''}, {tally.partial:,} partial",
        f"offered    {report.offered_qps:,.1f}/s",
        f"goodput    {report.goodput_qps:,.1f}/s",
        f"latency    {latency_text(tally.searches)}",
    ]
    if len(tally.ingests):
        lines.append(f"ingest     {latency_text(tally.ingests)}")
    lines.append(
        f"client     {max(report.processor_shares):.2f} of a core in the busiest of "
        f"{len(report.processor_shares)} processes; requests left late by "
        f"{latency_text(tally.lags)}"
    )
    if report.limits:
        lines.append(f"THE CLIENT WAS THE LIMIT: {'; '.join(report.limits)}: {ADVICE}")
    return "\n".join(lines)


def steps_table(reports: Sequence[Report]) -> Table:
    """The steps of a sweep in their order; a star marks those that the client limited."""
    rows = table(*_COLUMNS, right=_COLUMNS)
    for report in reports:
        known = report.tally.searches.as_json()
        behind = "CLIENT" if report.short else "behind"
        verdict = "kept up" if kept_up(report) else behind
        rows.add_row(
            f"{report.offered_qps:,.1f}",
            f"{report.goodput_qps:,.1f}",
            *(_ms(known[name]) for name in ("p50", "p99", "p999")),
            f"{report.errors:,}",
            f"{report.tally.partial:,}",
            f"{max(report.processor_shares):.2f}",
            f"{verdict} *" if report.limits else verdict,
        )
    return rows


def knee_text(reports: Sequence[Report]) -> str:
    """Where the knee is, or why it is not known."""
    knee = knee_qps(reports)
    if not knee_is_bounded(reports):
        reached = "" if knee is None else f" (at least {knee:,.1f}/s)"
        return f"knee       not found{reached}: the client was the limit: {ADVICE}"
    if knee is None:
        return "knee       none: no rate was kept up with; `shoal status` shows what serves"
    return f"knee       {knee:,.1f} answers/s"


def sweep_json(reports: Sequence[Report]) -> dict[str, Any]:
    """The object of `shoal loadtest --sweep --json`."""
    return {
        "steps": [report.as_json() for report in reports],
        "knee_qps": knee_qps(reports),
        # False: the client gave up before the cluster did, so the knee may lie higher.
        "knee_is_bounded": knee_is_bounded(reports),
    }


def draw(reports: Sequence[Report], path: Path) -> None:
    """Latency and goodput by offered rate, as SVG."""
    import matplotlib as mpl  # noqa: PLC0415 - a sweep without a picture does without it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "shoal"
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    steps = sorted(reports, key=lambda report: report.offered_qps)
    offered = [step.offered_qps for step in steps]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for label, percent in (("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)):
        times = [step.tally.searches.percentile_ms(percent) for step in steps]
        left.plot(offered, times, marker="o", label=label)
    left.set(xlabel="offered requests a second", ylabel="ms", yscale="log", title="Latency")
    right.plot(offered, offered, linestyle=":", color="grey", label="offered")
    right.plot(offered, [step.goodput_qps for step in steps], marker="o", label="goodput")
    limited = [step for step in steps if step.limits]
    right.plot(
        [step.offered_qps for step in limited],
        [step.goodput_qps for step in limited],
        *("rx",),
        label="client limited",
    )
    right.set(xlabel="offered requests a second", ylabel="answers a second", title="Goodput")
    knee = knee_qps(reports)
    for axes in (left, right):
        if knee is not None:
            axes.axvline(knee, linestyle="--", color="black", label=f"knee {knee:,.0f}/s")
        axes.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
