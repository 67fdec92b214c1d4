"""`python -m benchmarks NAME`: runs a benchmark, prints a table, and writes NAME.json, NAME.md and NAME.png."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from benchmarks import harness

ALL = ("train_step", "search", "stream", "poisson", "data", "scaling")


def main() -> None:
    """Runs the benchmarks that the command line names."""
    if sys.argv[1:2] == ["programs"]:
        # It runs nothing on a device. An installed plugin without its device complains when JAX is imported.
        os.environ["JAX_PLATFORMS"] = "cpu"
        from benchmarks import programs

        programs.main(sys.argv[2:])
        return
    more = "`programs` has other options: python -m benchmarks programs --help"
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog=more)
    parser.add_argument("name", choices=(*ALL, "all", "gpu"), help="the benchmark")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each case; cases alternate (7)")
    parser.add_argument("--base-width", type=int, default=64, help="base width of the networks (64)")
    parser.add_argument("--batch-size", type=int, default=64, help="batch size of a step (64)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark-results"), help="folder of the results (benchmark-results)"
    )
    options = parser.parse_args()
    for name in ALL if options.name == "all" else [options.name]:
        print(f"{name}:", flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        cases = module.cases(options.base_width, options.batch_size)
        records = harness.measure(cases, options.rounds, lambda line: print(line, flush=True), together=name == "gpu")
        harness.compare(records)
        notes = module.notes(records)
        print(harness.write(name, records, notes, options.out))
        for key, value in notes.items():
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
