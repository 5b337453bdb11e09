"""How much of a collection stands behind an answer, and whether that is enough."""

from collections.abc import Mapping, Sequence

from shoal.errors import InsufficientCoverage, Overloaded, PositionNotReached, ShoalError
from shoal.types import Coverage, MissingShard


def coverage_of(documents: Sequence[int], missing: Mapping[int, ShoalError]) -> Coverage:
    """Accounts for an answer.

    Args:
        documents: per shard, its live documents: from its reply, or as last
            published.
        missing: the shards that did not take part, and why.
    """
    return Coverage(
        documents_total=sum(documents),
        documents_covered=sum(
            count for shard, count in enumerate(documents) if shard not in missing
        ),
        shards_total=len(documents),
        shards_answered=len(documents) - len(missing),
        missing=tuple(MissingShard(shard, missing[shard].reason) for shard in sorted(missing)),
    )


def shortfall(
    coverage: Coverage, min_coverage: float, missing: Mapping[int, ShoalError]
) -> ShoalError | None:
    """The error of an answer that covers less than its caller accepts; else None.

    A shard that says the caller is wrong (a bad vector) is never a matter of
    coverage: every other shard would say so too. Where every missing shard waits
    for a write, or refuses work, that is the error: it says what to do better.
    """
    for error in missing.values():
        if error.caller_fault:
            return error
    if coverage.ratio >= min_coverage:
        return None
    errors = list(missing.values())
    for kind in (PositionNotReached, Overloaded):
        if errors and all(isinstance(error, kind) for error in errors):
            return max(errors, key=lambda error: error.retry_after_s or 0.0)
    names = ",".join(f"{each.shard}:{each.reason}" for each in coverage.missing)
    return InsufficientCoverage(
        f"{coverage.documents_covered} of {coverage.documents_total} documents are behind the "
        f"answer ({coverage.ratio:.4f}, wanted {min_coverage:g}); missing shards: {names}",
        missing=names,
        coverage=coverage.ratio,
        min_coverage=min_coverage,
    )
