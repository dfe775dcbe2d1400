"""The packaged workloads, a file per family. Importing this package registers them."""

from clipbench.workloads import analytic, images, sequences, tabular, text

__all__ = ["analytic", "images", "sequences", "tabular", "text"]
