"""What the sections of docs/performance.md are made of."""

from collections.abc import Iterable
from typing import Any


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(head)]
    lines += [["---"] * len(lines[0])]
    lines += [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def surroundings(result: dict[str, Any]) -> str:
    """Where and at which commit a result was measured."""
    machine, versions = result["machine"], result["versions"]
    return (
        f"{result['date']}, commit `{result['commit'][:12]}`{result['commit'][40:]}, "
        f"{machine['cores']} cores of {machine['processor']}, load average at start "
        f"{machine['load_average_at_start']}, Python {versions['python']}, "
        f"grpcio {versions['grpcio']}, faiss {versions['faiss-cpu']}."
    )


def bars(result: dict[str, Any]) -> str:
    """What was to be reached."""
    rows = [
        (
            line["name"],
            f"{line['value']:.3g}",
            f">= {line['least']:.3g}" if "least" in line else f"<= {line['most']:.3g}",
            "yes" if line["reached"] else "**no**",
        )
        for line in result["bars"]
    ]
    return table(("figure", "measured", "wanted", "reached"), rows)
