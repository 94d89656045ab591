"""Mutation tests (mutmut): insert small faults into the code one at a time, and count how many the tests find.

    python benchmarks/mutants.py [--count 300] [--seed 22] [--most N]

It takes a random sample of all mutants of the modules in [tool.mutmut] of pyproject.toml, runs each against the tests
named there, and prints how many were killed and what the survivors change. A mutant that ran out of time is printed
with the survivors: only its change tells an endless loop from a busy machine. With --most it stops after N mutants;
stopped in any way, it continues from there the next time. Texts of messages and logs are not mutated. The working
files are in mutants/; remove them after a change of the code or the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MUTMUT = [str(Path(sys.executable).parent / "mutmut")]
FIRST = "stereo_core.metrics.x_disparity_metrics__mutmut_1"  # creates all mutants, and tries this one
FOUND = ("killed", "segfault")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=22, help="seed of the sample")
    parser.add_argument("--most", type=int, help="mutants to try now")
    args = parser.parse_args()
    with shared_beside_the_mutants():
        tried(args)


def tried(args: argparse.Namespace) -> None:
    if not Path("mutants").is_dir():
        run(FIRST)
    states = results()
    names = sorted(states)
    sample = random.Random(args.seed).sample(names, min(args.count, len(names)))
    todo = [name for name in sample if states[name] == "not checked"][: args.most]
    if todo:
        run(*todo)
    report({name: state for name, state in results().items() if name in set(sample)}, len(names))


@contextlib.contextmanager
def shared_beside_the_mutants() -> Iterator[None]:
    """The tests look for ../shared, and skip without it; for those in mutants/ that is this folder."""
    link = Path("shared")
    made = Path("../shared").is_dir() and not link.exists()
    if made:
        link.symlink_to("../shared")
    try:
        yield
    finally:
        if made:
            link.unlink()


def run(*names: str) -> None:
    done = subprocess.run([*MUTMUT, "run", "--max-children", "1", *names], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"mutmut failed; it does so if a test fails without a mutant:\n{done.stdout[-4000:]}{done.stderr}")


def results() -> dict[str, str]:
    """Name of a mutant -> its state in mutmut's terms."""
    output = subprocess.run([*MUTMUT, "results", "--all", "true"], check=True, capture_output=True, text=True).stdout
    return dict(line.strip().rsplit(": ", 1) for line in output.splitlines() if ": " in line)


def report(states: dict[str, str], all_there_are: int) -> None:
    counts = Counter(states.values())
    tried = len(states) - counts["not checked"]
    found = sum(counts[state] for state in FOUND)
    for name, state in sorted(states.items()):
        if state not in (*FOUND, "not checked"):
            print(f"\n{state}: {name}")
            change = subprocess.run([*MUTMUT, "show", name], capture_output=True, text=True).stdout
            print(
                "\n".join(line for line in change.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---"))
            )
    print(f"\n{dict(counts)}")
    print(f"{found} of {tried} killed ({found / max(tried, 1):.1%}); {all_there_are} mutants in all")


if __name__ == "__main__":
    main()
