"""edgeai: from full-precision weights to an answer on a laptop, with proof."""

__version__ = "0.1.0"
