"""What each packaged problem is, in a few words: a network, and what it learns.

A store says of its workloads what they test. It knows no section.
"""

from __future__ import annotations

from collections.abc import Mapping

WHAT: Mapping[str, str] = {  # registered name → the model and the data
    "clipping-bias": "a function of one number",
    "cliff": "one recurrent unit, a function of two numbers",
    "cosh": "a function, steeper further out",
    "digits": "a small network on scikit-learn's handwritten digits",
    "heavy-tails": "a quadratic function with rare, huge noise",
    "label-noise": "a linear model on drawn points with wrong labels",
    "lesions": "a small U-Net on drawn lesions",
    "medmnist": "a convolutional network on medical images",
    "non-smooth": "a function with a sharp valley",
    "origin": "the article's network on handwritten digits",
    "phantom": "a small U-Net on drawn phantoms",
    "sign-bias": "a straight line with skewed noise",
    "temporal-order": "a recurrent network on drawn sequences",
    "text": "a small transformer on English text",
    "tissue": "a U-Net on real MRI slices",
    "wdbc": "a small network on a table of breast cancer features",
}
