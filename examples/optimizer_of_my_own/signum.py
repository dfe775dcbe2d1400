"""Sign descent with momentum."""

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
