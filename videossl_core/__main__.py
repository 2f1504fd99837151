"""Train without a notebook, as ``torchrun`` needs it for several processes, here or on several machines:

``torchrun --nproc-per-node 4 -m videossl_core -p dataset ucf101 -p label_pct 10``
"""

import argparse
from functools import partial

from videossl_core import params, training


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m videossl_core", description="Train one run.")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given")
    # every value stays text, which the model reads as what it needs: 01 may be a name
    given = {name: None if value in ("None", "null") else value for name, value in parser.parse_args().given}
    print(training.train(params.load(**given), show=partial(print, flush=True)).folder)


if __name__ == "__main__":
    main()
