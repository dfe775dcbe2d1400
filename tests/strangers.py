"""What a stranger brings: the clip and the study that README shows, word for word, an optimizer,
and networks.
"""

import re
from pathlib import Path

from torch.nn import functional

from clipbench import metrics, registry, workload

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


def on_cancer(name, build, measure=functional.cross_entropy):
    """Register a workload: the data of wdbc, another network, and maybe another loss."""

    @workload(name)
    class Other:
        metric = metrics.accuracy
        reference_loss = 1.0

        def data(self, generator):
            return registry.build("workload", "wdbc", {}).data(generator)

        def model(self):
            return build()

        def loss(self, output, target):
            return measure(output, target)
