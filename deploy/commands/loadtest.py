"""`shoal loadtest`: how much the cluster bears, and how quick it is meanwhile."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import shoal
from deploy.commands.beir import read_questions
from deploy.commands.output import (
    DEFAULT_TARGET,
    EXIT_FAILED,
    EXIT_PARTIAL,
    JsonOption,
    NameArgument,
    TargetOption,
    print_json,
)
from shoal.errors import CollectionNotFound, InvalidRequest

if TYPE_CHECKING:
    from shoal import Client
    from shoal.loadtest.core.report import Report
    from shoal.loadtest.core.schedule import Step
    from shoal.loadtest.driver import Setup
    from shoal.loadtest.messages import Question

DEFAULT_QPS = 100.0
WARM_UP_MAX_S = 1.0
WARM_UP_SHARE = 0.2
VECTOR_SUFFIX = ".npy"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the options say.

    Attributes:
        sweep: find the knee.
        rate_per_s: open loop, unless the knee is looked for.
        in_flight: closed loop, where given.
        duration_s: measured, of each step.
        clients: processes.
        ingest_share: share of ingests, 0.0 to 1.0.
        top_k: documents wanted.
        deadline_s: time for each call.
        seed: of arrivals and their order.
    """

    sweep: bool
    rate_per_s: float | None
    in_flight: int | None
    duration_s: float
    clients: int
    ingest_share: float
    top_k: int
    deadline_s: float
    seed: int

    def step(self, number: int, rate_per_s: float | None) -> Step:
        """A step at this rate, or with the calls under way of a closed loop."""
        from shoal.loadtest.core.schedule import Step  # noqa: PLC0415 - needs the extra

        warm_up_s = min(WARM_UP_MAX_S, WARM_UP_SHARE * self.duration_s)
        return Step(number, self.duration_s, warm_up_s, rate_per_s, self.in_flight)


QueriesFile = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="BEIR queries.jsonl or one question a line, plain or .gz; or .npy, a row a question.",
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(metavar="QPS", min=0.01, help="Requests a second; 100 if nothing is said."),
]
SweepOption = Annotated[
    bool, typer.Option("--sweep", help="Find the highest rate that is kept up with.")
]
ClosedOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="N callers that each wait for their answer (hides stalls)."
    ),
]
DurationOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.1, help="Measured, of each rate.")
]
MixOption = Annotated[
    str,
    typer.Option(
        metavar="SHARES",
        help="search=0.95,ingest=0.05 also stores questions as documents, again and again under "
        "ids of its own, 100 for each client, that begin with loadtest-; it deletes them in the "
        "end.",
    ),
]
ProcessesOption = Annotated[int, typer.Option(metavar="P", min=1, help="Client processes.")]
VectorsOption = Annotated[
    bool, typer.Option("--vectors", help="Encode the questions first and send vectors.")
]
TopKOption = Annotated[int, typer.Option("-k", "--top-k", help="Documents wanted.")]
DeadlineOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, help="Time for each call.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the arrivals and their order.")]
PlotOption = Annotated[
    Path | None, typer.Option(metavar="FILE.svg", help="With --sweep: draw the steps.")
]


def loadtest(  # noqa: PLR0913 - each is an option of the command
    name: NameArgument,
    *,
    queries: QueriesFile,
    rate: RateOption = None,
    sweep: SweepOption = False,
    closed: ClosedOption = None,
    duration: DurationOption = 10.0,
    mix: MixOption = "search=1",
    processes: ProcessesOption = 1,
    vectors: VectorsOption = False,
    top_k: TopKOption = 10,
    deadline: DeadlineOption = 10.0,
    seed: SeedOption = 1,
    plot: PlotOption = None,
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
) -> None:
    """Load a collection with requests and measure what becomes of them.

    By default requests arrive at random (Poisson), --rate of them a second, whether
    or not earlier ones were answered, and each one's time runs from when it was
    meant to leave: when the cluster stands still for a second, the requests of that
    second show it. Repeated questions are answered from the routers' cache of
    encodings: give many, or --vectors.

    Exits with 1 if a request failed (with --sweep: if no rate was kept up with),
    with 4 if an answer was partial. A run whose client was the limit says so:
    its figures are the client's.

    Example: shoal loadtest papers --queries queries.jsonl --rate 50 --duration 30
    """
    _check_usage(rate, sweep, closed, plot)
    _check_installed(plot)
    plan = Plan(
        sweep=sweep,
        rate_per_s=None if sweep or closed else rate or DEFAULT_QPS,
        in_flight=closed,
        duration_s=duration,
        clients=min(processes, closed or processes),
        ingest_share=_ingest_share(mix),
        top_k=top_k,
        deadline_s=deadline,
        seed=seed,
    )
    with shoal.connect(target) as client:
        reports = _run(client, name, _questions(client, name, queries, vectors), plan)
    _tell(reports, plan, plot, as_json=json)


def _check_usage(rate: float | None, sweep: bool, closed: int | None, plot: Path | None) -> None:
    if sum((rate is not None, sweep, closed is not None)) > 1:
        raise typer.BadParameter("--rate, --sweep and --closed exclude each other: give one")
    if plot is not None and not sweep:
        raise typer.BadParameter("--plot draws the steps of a sweep: add --sweep")


def _ingest_share(mix: str) -> float:
    from shoal.loadtest.core.schedule import ingest_share  # noqa: PLC0415 - needs the extra

    try:
        return ingest_share(mix)
    except ValueError as error:
        raise typer.BadParameter(f"--mix: {error}") from error


def _check_installed(plot: Path | None) -> None:
    needed = ["hdrh", *(["matplotlib"] if plot is not None else [])]
    if any(importlib.util.find_spec(module) is None for module in needed):
        typer.echo("this needs more packages: pip install 'shoal[loadtest]'", err=True)
        raise typer.Exit(EXIT_FAILED)


def _questions(client: Client, name: str, file: Path, vectors: bool) -> Sequence[Question]:
    if file.suffix == VECTOR_SUFFIX:
        return _read_vectors(file)
    texts = read_questions(file)
    if not vectors:
        return texts
    from shoal.loadtest.encoding import encoded  # noqa: PLC0415 - as above

    status = client.status()
    found = next((each for each in status.collections if each.name == name), None)
    if found is None:
        raise CollectionNotFound(f"there is no collection {name!r}")
    return encoded(status, found, texts)


def _read_vectors(file: Path) -> Sequence[Any]:
    import numpy as np  # noqa: PLC0415 - as above

    try:
        loaded = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidRequest(f"{file} is no .npy file of numbers: {error}") from error
    if loaded.ndim not in (2, 3) or not loaded.size:
        raise InvalidRequest(
            f"{file} has shape {loaded.shape}; give [questions, dim], or "
            "[questions, tokens, dim] for kind colbert"
        )
    return list(loaded)


def _run(client: Client, name: str, questions: Sequence[Question], plan: Plan) -> list[Report]:
    from shoal.loadtest.driver import Setup  # noqa: PLC0415 - as above
    from shoal.loadtest.messages import messages  # noqa: PLC0415
    from shoal.loadtest.pool import ClientDied  # noqa: PLC0415

    _try(client, name, questions[0], plan)
    setup = Setup(
        target=client.target,
        messages=messages(
            name, questions, top_k=plan.top_k, prefix=f"loadtest-{secrets.token_hex(4)}-"
        ),
        ingest_share=plan.ingest_share,
        deadline_s=plan.deadline_s,
        seed=plan.seed,
        client=0,
        clients=plan.clients,
    )
    try:
        with _cleaned(client, name, setup):
            return _measure(setup, plan)
    except ClientDied as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error


def _try(client: Client, name: str, question: Question, plan: Plan) -> None:
    """One search by the ordinary client, whose errors say what to do."""
    how: Any = {"text": question} if isinstance(question, str) else {"vector": question}
    client.search(
        name,
        **how,
        top_k=plan.top_k,
        deadline_s=plan.deadline_s,
        min_coverage=0.0,
        allow_truncation=True,
    )


@contextmanager
def _cleaned(client: Client, name: str, setup: Setup) -> Iterator[None]:
    """Deletes what the run stored, also when it is interrupted."""
    from shoal.loadtest.messages import all_ids  # noqa: PLC0415 - as above

    try:
        yield
    finally:
        if setup.ingest_share:
            client.delete(name, all_ids(setup.messages.prefix, setup.clients))


def _measure(setup: Setup, plan: Plan) -> list[Report]:
    from deploy.commands.loadtest_output import LiveView  # noqa: PLC0415 - as above
    from shoal.loadtest.core.knee import next_rate  # noqa: PLC0415
    from shoal.loadtest.pool import ClientPool  # noqa: PLC0415

    reports: list[Report] = []
    with ClientPool(setup) as pool, LiveView() as view:
        rate = next_rate(reports) if plan.sweep else plan.rate_per_s
        while True:
            step = plan.step(len(reports), rate)
            view.begin(step, reports)
            reports.append(pool.run(step, view.watch))
            rate = next_rate(reports) if plan.sweep else None
            if rate is None:
                return reports


def _tell(reports: Sequence[Report], plan: Plan, plot: Path | None, *, as_json: bool) -> None:
    """Prints and draws, and exits with the code for what happened."""
    from deploy.commands import loadtest_output as output  # noqa: PLC0415 - as above
    from shoal.loadtest.core.knee import knee_qps  # noqa: PLC0415

    if plot is not None:
        output.draw(reports, plot)
    if as_json:
        print_json(output.sweep_json(reports) if plan.sweep else reports[0].as_json())
    else:
        output.show_reports(reports, sweep=plan.sweep)
    if plan.sweep:
        failed, partial = knee_qps(reports) is None, False
    else:
        failed, partial = reports[0].errors > 0, reports[0].tally.partial > 0
    if failed or partial:
        raise typer.Exit(EXIT_FAILED if failed else EXIT_PARTIAL)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("loadtest")(loadtest)
