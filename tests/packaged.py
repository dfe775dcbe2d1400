"""What is packaged, and of every packaged clip settings under which it acts."""

from clipbench import clips, optimizers, registry, workloads

# three are imported because that registers their components
__all__ = ["CLIPS", "clips", "names", "optimizers", "workloads"]

CLIPS = {  # a warm-up is over after a few steps
    "none": {},
    "value": {"max_value": 0.01},
    "norm": {"max_norm": 0.1},
    "layer": {"max_norm": 0.05},
    "block-rms": {"max_rms": 0.005},
    "adaptive": {},
    "normalised": {"beta": 0.1},
    "quantile": {"percentile": 40.0, "window": 5},
    "z-score": {"max_z": 0.5, "warmup": 4},
    "adagc": {"warmup": 3},
}


def names(kind):
    """The names of a kind's packaged components."""
    return [
        name
        for name in registry.names(kind)
        if registry.find(kind, name).__module__.startswith("clipbench.")
    ]
