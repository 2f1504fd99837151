"""Train without a notebook, as ``torchrun`` needs it on several machines:

``torchrun --nnodes 2 --nproc-per-node 4 --rdzv-endpoint <host>:29500 -m videossl_core -p dataset ucf101``
"""

import argparse

import yaml

from videossl_core import params, training
from videossl_core.views.progress import LiveTraining


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videossl_core", description="Train one run.")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given")
    given = {name: yaml.safe_load(value) for name, value in parser.parse_args(words).given}
    p, live = params.load(**given), LiveTraining()
    print(training.train(p, live.progress, live.on_log).folder)


if __name__ == "__main__":
    main()
