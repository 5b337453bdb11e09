"""What to send and when: drawn before the run, so that no answer can change it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1024
_OPERATIONS = ("search", "ingest")
_TOLERANCE = 1e-6


class Operation(NamedTuple):
    """One thing to send.

    Attributes:
        ingest: store a document made from the question, instead of asking it.
        question: which one, from 0.
    """

    ingest: bool
    question: int


@dataclass(frozen=True, slots=True)
class Step:
    """One rate, or one number of calls under way, held for a while.

    Attributes:
        number: of the step in its run, from 0; a part of the seed.
        duration_s: the window that is measured.
        warm_up_s: load before the window, which is not measured.
        rate_per_s: open loop: arrivals a second, of all clients together.
        in_flight: closed loop: calls under way, of all clients together.
    """

    number: int
    duration_s: float
    warm_up_s: float
    rate_per_s: float | None = None
    in_flight: int | None = None


def generator(seed: int, step: int, client: int) -> np.random.Generator:
    """A client's own random numbers for a step; the same arguments give the same ones."""
    return np.random.default_rng([seed, step, client])


def poisson_ns(rate_per_s: float, seconds: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """The arrivals of a Poisson process, ascending, as nanoseconds from its beginning.

    Given their number, the arrivals of a Poisson process are independent and
    uniform. Several clients with a share of the rate each make one process of
    the whole rate.

    Args:
        rate_per_s: arrivals a second, on average; above 0.
        seconds: how long.
        rng: the source of chance.
    """
    count = rng.poisson(rate_per_s * seconds)
    return np.sort((rng.random(count) * seconds * 1e9).astype(np.int64))


def operations(
    questions: int, ingest_share: float, rng: np.random.Generator
) -> Iterator[Operation]:
    """Without end: every question once before any comes again, in a new order each time."""
    order = iter(rng.permutation(questions).tolist())
    while True:
        for ingest in (rng.random(_BLOCK) < ingest_share).tolist():
            question = next(order, None)
            if question is None:
                order = iter(rng.permutation(questions).tolist())
                question = next(order)
            yield Operation(ingest, question)


def share(whole: int, parts: int, part: int) -> int:
    """How many of `whole` things fall to a part, so that shares differ by at most 1."""
    return whole // parts + (part < whole % parts)


def ingest_share(mix: str) -> float:
    """The share of ingests in a mix such as "search=0.95,ingest=0.05".

    Raises:
        ValueError: it is no mix; the message says how one looks.
    """
    shares = dict.fromkeys(_OPERATIONS, 0.0)
    for part in mix.split(","):
        name, _, value = part.strip().partition("=")
        if name not in shares:
            raise ValueError(f"{name!r} is no operation; give search=SHARE,ingest=SHARE")
        try:
            shares[name] = float(value)
        except ValueError:
            raise ValueError(f"{part.strip()!r} is no share; give search=0.95") from None
    total = sum(shares.values())
    if not all(0.0 <= each <= 1.0 for each in shares.values()) or abs(total - 1) > _TOLERANCE:
        raise ValueError(f"the shares of {mix!r} must lie between 0 and 1 and add up to 1")
    return shares["ingest"]
