"""Clip at a multiple of the running mean of past norms."""

import torch

from clipbench import Positive, Unit, clip, trees


@clip("ema")
class Ema:
    """Scale the gradient to at most ``ratio`` times its usual length."""

    ratio: Positive = 1.0
    beta: Unit = 0.95

    def init(self, params):
        return {"mean": trees.zero(params), "step": trees.zero(params)}

    def update(self, grads, state, params):
        norm = trees.norm(grads)
        seen = norm.isfinite()  # a norm that overflows would stay in the mean for ever
        mean = torch.where(seen, self.beta * state["mean"] + (1 - self.beta) * norm, state["mean"])
        step = state["step"] + seen
        limit = self.ratio * mean / (1 - self.beta**step)
        return trees.scale_to(grads, limit, norm), {"mean": mean, "step": step}
