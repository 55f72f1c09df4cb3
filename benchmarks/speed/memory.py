"""What `tlora.estimate` says, and what a process held, in fourteen configurations.

    python -m benchmarks.speed.memory                  # each in processes of their own, on one thread
    python -m benchmarks.speed.memory --only 3         # one of them

A peak is that of the process's resident memory, less what it held before there was a model.
"""

from __future__ import annotations

import argparse

import pandas as pd

from tests.helpers.process_memory import CONFIGURATIONS, estimated, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of configurations, from 0")
    arguments = parser.parse_args()
    rows = []
    for number in arguments.only or range(len(CONFIGURATIONS)):
        configuration = CONFIGURATIONS[number]
        said, held = estimated(configuration), measured(configuration)
        rows.append({"configuration": str(configuration), "estimated, MB": said / 1e6, "held, MB": held / 1e6})
        rows[-1]["estimated / held"] = said / held
        print(pd.DataFrame(rows[-1:]).round(2).to_string(index=False, header=number == 0), flush=True)


if __name__ == "__main__":
    main()
