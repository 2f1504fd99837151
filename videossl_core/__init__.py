"""VideoSSL Lab: semi-supervised video classification (Jing et al., VideoSSL) in notebooks and a slim core."""

__version__ = "0.1.0"
