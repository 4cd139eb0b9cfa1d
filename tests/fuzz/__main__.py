"""Damaged files for every parser: each is read, or refused by a UserError; anything else is a finding.

    python -m tests.fuzz                      # 10,000 inputs a parser
    python -m tests.fuzz --count 300 media    # fewer, of one parser
    python -m tests.fuzz --only media:123     # one input, in this process, with its traceback

Inputs are read in child processes whose memory and time are limited. Findings stay in out/fuzz, input and traceback.
"""

import argparse
import os
import sys
from pathlib import Path

from .run import fuzz, work


def main() -> int:
    from . import parsers

    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("parsers", nargs="*", default=list(parsers.NAMES), help=", ".join(parsers.NAMES))
    options.add_argument("--count", type=int, default=10_000, help="inputs a parser")
    options.add_argument("--start", type=int, default=0, help="number of the first one")
    options.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="child processes at a time")
    options.add_argument("--out", type=Path, default=Path("out/fuzz"))
    options.add_argument("--only", help="PARSER:NUMBER")
    options.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        return work(given.child, given.out)
    if given.only:
        name, number = given.only.split(":")
        given.out.mkdir(parents=True, exist_ok=True)
        parser = parsers.Parser(name, given.out)
        parsers.load_readers([name])
        path = parser.make(int(number))
        print(path)  # noqa: T201
        parser.read(path)
        return 0
    found = fuzz(given.parsers, given.count, given.out, given.jobs, given.start)
    for one in found:
        print(one)  # noqa: T201
    print(f"{given.count} inputs for each of {', '.join(given.parsers)}: {len(found)} findings")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
