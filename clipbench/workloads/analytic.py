"""Analytic functions: no data, the weights are the point, the module's output is the loss."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.registry import Count, NonNegative, Positive, workload


@workload("cosh")
class Cosh:
    r"""A test of steepness that grows with the gradient: one learning rate is too hot far out or too slow near by.

    .. math:: f(x) = \sum_{i=1}^{d} \cosh x_i, \qquad \nabla f(x) = \sinh x + \xi, \qquad \xi \sim N(0, \sigma^2 I)

    (L₀, L₁)-smooth with L₀ = L₁ = 1 but not smooth: of the class for which clipping is proved to speed descent up. The seed draws
    the start, uniform in [R/2, R]^d. The minimum is d, at 0.

    The noise is on the gradient alone: every recorded loss is the true f. There is one noise vector a step, of 1×d, whatever the
    batch, which has no meaning here: a larger one does not average the noise. The targets are the optimum. Evaluations are without
    noise, so that validation and test are the same.

    :param dimension: d, at least 1.
    :param radius: R, in units of x, above 0; from 89 on f overflows in float32.
    :param noise: σ, in units of the gradient, at least 0.

    **Source**: Zhang, He, Sra & Jadbabaie 2020.
    """

    dimension: Count = 10
    radius: Positive = 8.0
    noise: NonNegative = 0.1

    metric = metrics.log10_gap
    reference_loss = None  # an analytic function is compared with its own first loss
    version = 1
    step_seconds = 1.9e-4
    lanes = True

    @property
    def optimum(self) -> float:
        """The least value of f."""
        return float(self.dimension)

    @property
    def target(self) -> float:
        """What the best unclipped arm has at 75 % of its steps, at the default settings."""
        return self.optimum + 0.0174

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        still = torch.zeros(1, self.dimension), torch.tensor([self.optimum])
        return {"validation": still, "test": still}

    def sample(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        return self.noise * torch.randn(1, self.dimension, generator=generator), torch.tensor([self.optimum])

    def model(self) -> nn.Module:
        return SumOfCosh(self.radius * (0.5 + 0.5 * torch.rand(self.dimension)))


class SumOfCosh(nn.Module):
    """f at the point ``x``, a scalar; an input of 1×d is added to its gradient and leaves its value alone."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start)

    def forward(self, noise: Tensor) -> Tensor:
        return self.x.cosh().sum() + (noise * (self.x - self.x.detach())).sum()
