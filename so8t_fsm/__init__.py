"""The machine: time, failure and memory.  Knows no machine learning and never imports torch."""

__version__ = "0.1.0"
