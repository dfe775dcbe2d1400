"""What this package is about: a step of SGD whose momentum fades with the step's number."""

import torch

from clipbench import Unit, optimizer, trees


@optimizer("fading-momentum")
class FadingMomentum:
    """SGD with momentum β / √t at step t."""

    beta: Unit = 0.9

    def init(self, params):
        return {"mean": trees.zeros_like(params), "step": trees.zero(params)}

    def update(self, grads, state, params):
        step = state["step"] + 1
        beta = self.beta / torch.sqrt(step)
        mean = trees.map(lambda m, g: beta * m + g, state["mean"], grads)
        return mean, {"mean": mean, "step": step}
