"""The packaged workloads, a file per family. Importing this package registers them."""

from clipbench.workloads import (
    analytic,
    images,
    medmnist,
    segmentation,
    sequences,
    tabular,
    text,
    tissue,
)

__all__ = [
    "analytic",
    "images",
    "medmnist",
    "segmentation",
    "sequences",
    "tabular",
    "text",
    "tissue",
]
