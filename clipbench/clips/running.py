"""Clips that learn their threshold from the norms they have seen.

None of them learns from a step whose norm is not finite: a NaN would stay in a running mean for
ever, and so would the error of an overflow, which does not end a run. The code of one of the papers
refuses such a step; that of the others keeps it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench import trees
from clipbench.clips.fixed import EPSILON, State, factor
from clipbench.registry import Count, Decay, NonNegative, Percent, Positive, clip
from clipbench.trees import Tree


@clip("quantile")
class Quantile:
    r"""Shorten the gradient to a percentile of the norms seen so far, its own included: its
    direction stays.

    .. math:: g_t \leftarrow g_t \min\Bigl(1,\ \frac{Q_p(\lVert g_1 \rVert, \dots, \lVert g_t
              \rVert)}{\lVert g_t \rVert}\Bigr)

    :param percentile: p, [0, 100], with linear interpolation between two norms: 10 clips 90 % of
        the steps while norms have no trend, and fewer while they fall; 100 clips none.
    :param window: how many norms are remembered, the last ones; those of a run of as many steps are
        all.

    **Shapes**: any, kept. The first gradient passes as it is. **Errors**: none is raised; a NaN
    passes as it is, and infinity and overflow act as in ``norm``. Where more than p % of the norms
    were 0, the threshold is 0, and so is every gradient.

    **Source**: Seetharaman et al. 2020 (AutoClip), who remember every norm; a window of 1000 is
    their later package's. They clip by ``clip_grad_norm_``, whose epsilon shortens even at p = 100;
    here nothing is changed there.

    >>> rule = Quantile(percentile=50.0)
    >>> state = rule.init({"w": torch.zeros(2)})
    >>> for size in (1.0, 3.0, 10.0):
    ...     grads, state = rule.update({"w": torch.tensor([0.0, size])}, state, {})
    ...     print(grads["w"])
    tensor([0., 1.])
    tensor([0., 2.])
    tensor([0., 3.])
    """

    flat = True

    percentile: Percent = 10.0
    window: Count = 1000

    def init(self, params: Tree) -> State:
        # infinite: not seen yet
        return {"norms": trees.zero(params).new_full((self.window,), torch.inf)}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        norm = trees.norm(grads)
        norms = torch.where(
            norm.isfinite(), torch.cat([norm.reshape(1), state["norms"][:-1]]), state["norms"]
        )
        return trees.scale_to(grads, self._quantile(norms), norm), {"norms": norms}

    def _quantile(self, norms: Tensor) -> Tensor:
        # What is not finite sorts behind all that is, and does not count.
        ordered, last = norms.sort().values, norms.isfinite().sum() - 1
        # In float64, as a plain number is: in float32 the place of one norm among a thousand is
        # 1e-4 off.
        position = last.double() * (self.percentile / 100)
        below = position.floor()
        ends = torch.stack([below.long(), torch.minimum(below.long() + 1, last)])
        low, high = ordered.gather(0, ends.clamp(min=0)).unbind()
        return low + (position - below).to(norms.dtype) * (high - low)


@clip("z-score")
class ZScore:
    r"""Shorten a gradient whose norm stands out from its running mean, the more the farther it
    does: its direction stays.

    .. math:: z_t = \frac{\lVert g_t \rVert - \mu}{\sigma + \varepsilon}, \qquad
              g_t \leftarrow \frac{g_t}{\lVert g_t \rVert}\, n_t, \quad
              n_t = \mu + \sigma \zeta^2 / z_t \ \text{ where } z_t > \zeta, \text{ else } \lVert
              g_t \rVert

    .. math:: \mu \leftarrow \alpha \mu + (1 - \alpha)\, n_t, \qquad
              \sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha)(n_t - \mu)^2 \ \text{ with the new
              } \mu

    :param max_z: ζ, in deviations above the mean, (0, ∞].
    :param alpha: α, [0, 1).
    :param warmup: how many first gradients pass as they are; of their norms μ and σ² are the plain
        mean and variance (by n).
    :param eps: ε, in units of the gradient, [0, ∞].

    **Shapes**: any, kept. **Errors**: none is raised; a NaN passes as it is, and in the warm-up
    everything does; after it infinity and overflow act as in ``norm``.

    **Source**: Kumar et al. 2025 (ZClip). Their code can also hold every norm below a constant, 1
    by default, which their paper's algorithm does not, and divides by ‖g‖ + 1e-6.

    >>> rule = ZScore(max_z=2.0, warmup=2)
    >>> state = rule.init({"w": torch.zeros(2)})
    >>> for size in (1.0, 3.0, 10.0):
    ...     grads, state = rule.update({"w": torch.tensor([0.0, size])}, state, {})
    >>> grads["w"], state["mean"]
    (tensor([0.0000, 2.5000]), tensor(2.0150))
    """

    flat = True

    max_z: Positive = 2.5
    alpha: Decay = 0.97
    warmup: Count = 25
    eps: NonNegative = EPSILON

    def init(self, params: Tree) -> State:
        return {
            "mean": trees.zero(params),
            "variance": trees.zero(params),
            "seen": trees.zero(params),
        }

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        norm, mean, variance, seen = (
            trees.norm(grads),
            state["mean"],
            state["variance"],
            state["seen"] + 1,
        )
        warm, deviation = seen <= self.warmup, variance.sqrt()
        z = (norm - mean) / (deviation + self.eps)
        acts = torch.logical_and(z > self.max_z, torch.logical_not(warm))
        kept = torch.where(acts, mean + deviation * self.max_z / (z / self.max_z), norm)
        # In the warm-up Welford's sums, so that no norm need be remembered; afterwards the running
        # ones.
        share = torch.where(warm, 1 / seen, 1 - self.alpha)
        moved = mean + share * (kept - mean)
        square = (kept - moved) * (kept - torch.where(warm, mean, moved))
        after = {"mean": moved, "variance": variance + share * (square - variance), "seen": seen}
        return trees.scale_to(grads, kept, norm), trees.map(
            lambda new, old: torch.where(norm.isfinite(), new, old), after, state
        )


@clip("adagc")
class AdaGC:
    r"""Shorten each tensor's gradient to a little above the running mean of its own clipped norms.

    .. math:: g_t^{(l)} \leftarrow g_t^{(l)} \min\Bigl(1,\ \frac{\lambda\,
              \gamma_{t-1}^{(l)}}{\lVert g_t^{(l)} \rVert}\Bigr), \quad
              \gamma_t^{(l)} = \beta \gamma_{t-1}^{(l)} + (1 - \beta) \lVert g_t^{(l)} \rVert \
              \text{ (the clipped one)}

    In the warm-up the clip is ``norm``, and each γ the smallest clipped norm of its tensor so far.

    :param max_ratio: λ, the tensor's length by its usual one, (0, ∞].
    :param beta: β, [0, 1).
    :param max_norm: the warm-up's threshold, in units of the gradient, (0, ∞].
    :param warmup: how many steps it lasts.

    **Shapes**: any, kept. **Errors**: none is raised. In the warm-up NaN, infinity and overflow act
    as in ``norm``; after it a NaN passes as it is, and the others act within their own tensor only.
    A tensor whose gradient was once 0 in the warm-up stays at 0 for ever: so it does in the
    authors' code.

    **Source**: Wang et al. 2025 (AdaGC), with the paper's defaults. The authors' code has λ 1.04
    and β .99, and divides by ‖g‖ + 1e-6 after the warm-up, too.

    >>> rule = AdaGC(max_ratio=1.5, beta=0.5, warmup=1)
    >>> state = rule.init({"w": torch.zeros(2)})
    >>> for size in (1.0, 6.0):
    ...     grads, state = rule.update({"w": torch.tensor([0.0, size])}, state, {})
    >>> grads["w"], state["usual"]["w"]
    (tensor([0.0000, 1.5000]), tensor(1.2500))
    """

    max_ratio: Positive = 1.05
    beta: Decay = 0.98
    max_norm: Positive = 1.0
    warmup: Count = 100

    def init(self, params: Tree) -> State:
        return {
            "usual": {name: param.new_full((), torch.inf) for name, param in params.items()},
            "seen": trees.zero(params),
        }

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        norm, seen, usual = trees.norm(grads), state["seen"] + 1, state["usual"]
        warm, whole, known = seen <= self.warmup, factor(self.max_norm, norm), norm.isfinite()
        lengths = trees.map(torch.linalg.vector_norm, grads)

        def share(length: Tensor, mean: Tensor) -> Tensor:
            limit = self.max_ratio * mean
            return torch.where(warm, whole, torch.where(length > limit, limit / length, 1.0))

        def learned(length: Tensor, mean: Tensor) -> Tensor:
            after = torch.where(
                warm, torch.minimum(mean, length), self.beta * mean + (1 - self.beta) * length
            )
            return torch.where(known, after, mean)

        shares = trees.map(share, lengths, usual)
        kept = trees.map(torch.mul, lengths, shares)
        state = {
            "usual": trees.map(learned, kept, usual),
            "seen": torch.where(known, seen, state["seen"]),
        }
        return trees.map(torch.mul, grads, shares), state
