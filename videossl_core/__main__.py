"""Train without a notebook, as ``torchrun`` needs it for several processes, here or on several machines:

``torchrun --nproc-per-node 4 -m videossl_core -p dataset ucf101 -p label_pct 10``
"""

import argparse

from videossl_core import devices, distributed, params, prepare, runs, training


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m videossl_core", description="Train one run.")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given")
    # every value stays text, which the model reads as what it needs: 01 may be a name
    given = {name: None if value in ("None", "null") else value for name, value in parser.parse_args().given}
    p: params.Params = params.load(**given)
    with distributed.joined(devices.device(p)) as ranks, runs.open(p, ranks) as run:
        if not run.finished:
            for row in run.record(training.make_trainer(p, prepare.prepare(p), ranks)):
                if ranks.first:
                    print(row, flush=True)
    print(run.folder)


if __name__ == "__main__":
    main()
