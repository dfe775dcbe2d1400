"""What a stranger brings: the clip and the study that README shows, word for word, and an optimizer."""

import re
from pathlib import Path

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def shown(language):
    """README's first block in one language."""
    return re.search(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)[1]


EMA = shown("python")
STUDY = shown("toml")
SIGNUM = '''"""Sign descent with momentum."""

import torch

from clipbench import Unit, optimizer, trees


@optimizer("signum")
class Signum:
    """Step by the sign of an exponential average of gradients (Bernstein et al. 2018)."""

    beta: Unit = 0.9

    def init(self, params):
        return {"mean": trees.zeros_like(params)}

    def update(self, grads, state, params):
        mean = trees.map(lambda m, g: self.beta * m + (1 - self.beta) * g, state["mean"], grads)
        return trees.map(torch.sign, mean), {"mean": mean}
'''
