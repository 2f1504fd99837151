"""Train without a notebook, as ``torchrun`` needs it for several processes, here or on several machines:

``torchrun --nproc-per-node 4 -m videossl_core -p dataset ucf101 -p label_pct 10``
"""

import argparse
from functools import partial

import yaml

from videossl_core import params, training


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m videossl_core", description="Train one run.")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given")
    given = {name: yaml.safe_load(value) for name, value in parser.parse_args().given}
    print(training.train(params.load(**given), show=partial(print, flush=True)).folder)


if __name__ == "__main__":
    main()
