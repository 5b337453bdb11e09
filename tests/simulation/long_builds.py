"""Runs seeded worlds of builds for some time, and prints JSON.

Example: python -m tests.simulation.long_builds --seconds 600
"""

import argparse
import json
import sys
import time
from collections import Counter

from tests.simulation.build_world import World


def main() -> int:
    """Runs worlds until the time is over; 1 where one broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to run")
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    options = parser.parse_args()
    end_s, seed, simulated_s, flips = time.monotonic() + options.seconds, options.seed, 0.0, 0
    faults: Counter[str] = Counter()
    violations: dict[int, str] = {}
    while time.monotonic() < end_s:
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            violations[seed] = str(error)
            sys.stderr.write("\n".join([repr(error), *error.__notes__, ""]))
        simulated_s += world.simulated_s
        faults += world.faults
        flips += world.flips
        seed += 1
    found = {
        "runs": seed - options.seed,
        "simulated_hours": round(simulated_s / 3600, 2),
        "flips": flips,
        "faults": faults.total(),
        "violations": violations,
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
