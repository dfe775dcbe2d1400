"""Analytic functions: there are no data, the weights are the point, and the module's output is
the loss.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.registry import Count, NonNegative, Positive, Unit, workload


@workload("cosh")
class Cosh:
    r"""A test of steepness that grows with the gradient: one learning rate is too hot far out or
    too slow near by.

    .. math:: f(x) = \sum_{i=1}^{d} \cosh x_i, \qquad \nabla f(x) = \sinh x + \xi, \qquad
              \xi \sim N(0, \sigma^2 I)

    (L₀, L₁)-smooth with L₀ = L₁ = 1 but not smooth: of the class for which clipping is proved to
    speed descent up. The seed draws the start, uniform in [R/2, R]^d, unless it is even. The
    minimum is d, at 0.

    The noise is on the gradient alone: every recorded loss is the true f. There is one noise vector
    a step, of 1×d, whatever the batch, which has no meaning here: a larger one does not average the
    noise. The targets are the optimum. Evaluations are without noise, so that validation and test
    are the same.

    :param dimension: d, at least 1.
    :param radius: R, in units of x, above 0; from 89 on f overflows in float32.
    :param noise: σ, in units of the gradient, at least 0.
    :param start: ``"drawn"`` by the seed, or ``"even"``: d points from R/2 to R, evenly spaced,
        whatever the seed. An even start without noise leaves nothing to the seed: every one is the
        same run, so that a study should ask for one.

    **Source**: Zhang, He, Sra & Jadbabaie 2020.
    """

    dimension: Count = 10
    radius: Positive = 8.0
    noise: NonNegative = 0.1
    start: Literal["drawn", "even"] = "drawn"

    metric = metrics.log10_gap
    reference_loss = None  # an analytic function is compared with its own first loss
    margin = 0.5  # decades; a quarter of what Adam gains over SGD
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
        return _first(self.samples(generator, 1))

    def samples(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        noise = _normal(torch.empty(count, 1, self.dimension), generator)
        return noise.mul_(self.noise), torch.full((count, 1), self.optimum)

    def model(self) -> nn.Module:
        even = self.start == "even"
        return SumOfCosh(
            self.radius
            * (
                0.5
                + 0.5
                * (torch.linspace(0, 1, self.dimension) if even else torch.rand(self.dimension))
            )
        )


class SumOfCosh(nn.Module):
    """f at the point ``x``, a scalar; an input of 1×d is added to its gradient and leaves its
    value alone.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start)

    def forward(self, noise: Tensor) -> Tensor:
        return self.x.cosh().sum() + (noise * (self.x - self.x.detach())).sum()


@workload("cliff")
class Cliff:
    r"""A test of one step off a cliff: where a recurrence turns unstable, the gradient of its error
    leads far away at once.

    .. math:: x_t = w\, \sigma(x_{t-1}) + b, \quad x_0 = \tfrac12, \qquad
              E(w, b) = \bigl(\sigma(x_{50}) - 0.7\bigr)^2

    One unit through fifty steps of time: an error surface with a wall, for which the norm clip was
    proposed. Only w and b are trained, without noise. The seed is the start: seed n is point n mod
    400 of a grid of 20×20, w from 4 to 6 (the slower index) and b from −3.2 to −2, so that any 400
    seeds in a row are the whole grid. Fewer are a corner of it, and report seeds no fresh luck: a
    study of it asks for the 400. The least error is 0, along a curve; a run counts as a success
    from E = 1e-4 down. The input is empty and a batch has no meaning.

    Which starts succeed without a clip is chaotic, down to the rounding; about how many do is not.
    It has no settings.

    **Source**: Pascanu, Mikolov & Bengio 2013, Figure 6.
    """

    metric = metrics.log10_gap
    success = -4.0
    optimum = 0.0
    # a success: between starts that reach the foot and starts that fall, a median says nothing
    target = 1e-4
    reference_loss = None
    version = 1
    step_seconds = 1.1e-3
    lanes = True

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {split: (torch.empty(1, 0), torch.zeros(1)) for split in ("validation", "test")}

    def sample(self, generator: Generator) -> tuple[Tensor, Tensor]:
        return _first(self.samples(generator, 1))

    def samples(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        return torch.empty(count, 1, 0), torch.zeros(count, 1)

    def model(self, seed: int) -> nn.Module:
        row, column = divmod(seed % SIDE**2, SIDE)
        return UnitThroughTime(4 + 2 * row / (SIDE - 1), -3.2 + 1.2 * column / (SIDE - 1))


SIDE = 20  # starts along either weight
MOMENTS = 50  # of time


class UnitThroughTime(nn.Module):
    """E of one recurrent unit, a scalar; its input is not looked at."""

    def __init__(self, weight: float, bias: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))

    def forward(self, _: Tensor) -> Tensor:
        state = torch.full_like(self.w, 0.5)
        for _moment in range(MOMENTS):
            state = self.w * state.sigmoid() + self.b
        return (state.sigmoid() - 0.7).square()


@workload("heavy-tails")
class HeavyTails:
    r"""A test of rare, huge gradients: how far the worst of them throws the weights, under noise of
    one and the same variance.

    .. math:: f(x) = \tfrac12 \lVert x \rVert^2, \qquad \nabla f(x) = x + \xi, \qquad
              \mathrm{E}\, \xi_i = 0, \quad \mathrm{E}\, \xi_i^2 = 1

    From xᵢ = .01·i. The noise, independent in every coordinate, is centred and of unit variance;
    what differs is the tail, the chance of one far outside. It is drawn by inverting, in float64,

    - ``normal``;
    - ``weibull``: F(z) = 1 − exp(−z^k), k = .2, before centring of mean 120 and variance 10! −
      120²;
    - ``burr``: Burr's type XII, F(z) = 1 − (1 + z^c)^−d, c = 1, d = 2.3, before centring of mean
      1/1.3 and variance 2.3/(1.3²·.3). Its third moment is infinite.

    The noise is on the gradient alone, as in ``cosh``: every recorded loss is the true f. There is
    one noise vector a step, of 1×n, whatever the batch. Evaluations are without noise. The minimum
    is 0, at 0; the seed draws the noise only.

    :param dimension: n, at least 1.
    :param noise: which distribution.

    **Source**: Gorbunov, Danilova & Gasnikov 2020, their toy problem.
    """

    dimension: Count = 100
    noise: Literal["normal", "weibull", "burr"] = "weibull"

    metric = metrics.log10_gap
    optimum = 0.0
    target = 0.018
    reference_loss = None
    version = 2  # 2: normal noise drawn in float64
    step_seconds = 1.9e-4
    lanes = True

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            split: (torch.zeros(1, self.dimension), torch.zeros(1))
            for split in ("validation", "test")
        }

    def sample(self, generator: Generator) -> tuple[Tensor, Tensor]:
        return _first(self.samples(generator, 1))

    def samples(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        shape, wide = (count, 1, self.dimension), torch.float64
        if self.noise == "normal":
            return _normal(torch.empty(shape, dtype=wide), generator), torch.zeros(count, 1)
        # In float32 a uniform number is never closer to 1 than 6e-8: the tail would end there.
        survival = 1 - torch.rand(shape, generator=generator, dtype=wide)
        if self.noise == "weibull":
            raw, mean, variance = survival.log().neg() ** 5, 120.0, math.factorial(10) - 120.0**2
        else:
            raw, mean, variance = survival ** (-1 / 2.3) - 1, 1 / 1.3, 2.3 / (1.3**2 * 0.3)
        return raw.sub_(mean).div_(math.sqrt(variance)).float(), torch.zeros(count, 1)

    def model(self) -> nn.Module:
        return HalfSquare(0.01 * torch.arange(1, self.dimension + 1))


class HalfSquare(nn.Module):
    """f at the point ``x``, a scalar; an input of 1×n is added to its gradient and leaves its
    value alone.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start)

    def forward(self, noise: Tensor) -> Tensor:
        return 0.5 * self.x.square().sum() + (noise * (self.x - self.x.detach())).sum()


@workload("clipping-bias")
class ClippingBias:
    r"""A test of what clipping each example's gradient does to the place where descent ends: the
    clipped gradients of some examples may add up to zero away from the minimum.

    .. math:: f(x) = \frac{1}{n} \sum_{i=1}^{n} \tfrac12 (x - a_i)^2, \qquad
              \nabla f(x) = x - \bar a

    The minimum is at the mean of the aᵢ; x begins at −3/2. With every example's gradient clipped at
    c = 1 (``on = "example"``),

    - ``asymmetric``, a = (−3, −3, 9): at the minimum, x = 1, the mean of the clipped gradients is
      1/3; it is 0 at x = −5/2 alone, where descent ends;
    - ``symmetric``, a = (−3, 3): the mean of the clipped gradients is 0 at every x in [−2, 2],
      where descent stays as it begins.

    A batch is all examples, whatever its size, so that the mean over it is the expectation over a
    drawn example. An input is an aᵢ, N×1; the output is each example's ½(x − aᵢ)², N; the targets
    are the optimum. There is no randomness: every seed is the same run.

    :param examples: which aᵢ.

    **Source**: Chen, Wu & Hong 2020, Examples 1 and 2.
    """

    examples: Literal["asymmetric", "symmetric"] = "asymmetric"

    metric = metrics.log10_gap
    reference_loss = None
    version = 1
    step_seconds = 1.9e-4
    lanes = True

    @property
    def optimum(self) -> float:
        """The least value of f: half the variance of the aᵢ."""
        return 16.0 if self.examples == "asymmetric" else 4.5

    @property
    def target(self) -> float:
        """A hundredth above the optimum: x within .15 of the minimum."""
        return self.optimum + 0.01

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        values = [-3.0, -3.0, 9.0] if self.examples == "asymmetric" else [-3.0, 3.0]
        whole = torch.tensor(values).unsqueeze(1), torch.full((len(values),), self.optimum)
        return {"validation": whole, "test": whole}

    def sample(self, generator: Generator) -> tuple[Tensor, Tensor]:
        return self.data()["test"]

    def samples(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        numbers, optimum = self.data()["test"]
        return numbers.expand(count, -1, -1), optimum.expand(count, -1)

    def model(self) -> nn.Module:
        return HalfSquaredDistance()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return output.mean()


class HalfSquaredDistance(nn.Module):
    """Half the squared distance of the point ``x`` from each of N numbers, N×1: N values."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(-1.5))

    def forward(self, numbers: Tensor) -> Tensor:
        return 0.5 * (self.x - numbers).square().flatten()


@workload("sign-bias")
class SignBias:
    r"""A test of descent that sees the signs of noisy gradients alone, as under a value clip at a
    small threshold: more of them may lead away from the minimum than towards it.

    .. math:: f(x) = x / 4, \qquad \nabla f(x) = \begin{cases} 4 & \text{with probability } 1/4 \\
              -1 & \text{else} \end{cases}

    From x = 0. The gradient is 1/4 in expectation: a step at learning rate γ lowers f by γ/16. Its
    sign is −1/2 in expectation: a step of length γ along it raises f by γ/8. A value clip at c ≤ 1
    is c times the sign.

    The paper has x in [−1, 1] only. The optimum here is the minimum there, −1/4; nothing is
    projected, and f goes on to fall below x = −1. T steps at learning rate γ stay inside if 4γT ≤
    1, whatever is drawn. The noise is on the gradient alone, as in ``cosh``: every recorded loss is
    the true f. There is one gradient a step, whatever the batch. Evaluations are without noise. It
    has no settings.

    **Source**: Karimireddy, Rebjock, Stich & Jaggi 2019, Counterexample 1.
    """

    metric = metrics.log10_gap
    optimum = -0.25
    unbounded = True
    target = -1 / 64  # what plain descent has in expectation when γT is 1/4
    reference_loss = None
    version = 1
    step_seconds = 2.4e-4
    lanes = True

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        still = torch.zeros(1, 1), torch.tensor([self.optimum])
        return {"validation": still, "test": still}

    def sample(self, generator: Generator) -> tuple[Tensor, Tensor]:
        return _first(self.samples(generator, 1))

    def samples(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        rare = torch.rand(count, 1, 1, generator=generator) < 0.25
        return torch.where(rare, 4.0, -1.0) - 0.25, torch.full((count, 1), self.optimum)

    def model(self) -> nn.Module:
        return Quarter()


class Quarter(nn.Module):
    """f = x/4 at the point ``x``, a scalar; an input of 1×1 is added to its gradient and leaves
    its value alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))

    def forward(self, noise: Tensor) -> Tensor:
        return 0.25 * self.x.sum() + (noise * (self.x - self.x.detach())).sum()


@workload("non-smooth")
class NonSmooth:
    r"""A test of descent along the signs of a gradient without noise, as under a value clip at a
    small threshold: it may go from side to side of a valley and not along it.

    .. math:: f(x) = \varepsilon |x_1 + x_2| + |x_1 - x_2|

    From x = (1, 1), where f is 2ε. As long as x₁ + x₂ > 0 the signs of the gradient are ±(1, −1): x
    stays on the line x₁ + x₂ = 2, and f at 2ε or above. A value clip at c ≤ 1 − ε is c times these
    signs. The minimum is 0, at 0.

    If x₁ = x₂, as at the start, f has many subgradients; taken is that of x₁ − x₂, a limit of
    gradients, whose signs are as said. (With the usual slope of 0 for |x₁ − x₂| they would be (1,
    1).) The input is empty and a batch has no meaning. There is no randomness: every seed is the
    same run.

    :param epsilon: ε, above 0 and below 1.

    **Source**: Karimireddy, Rebjock, Stich & Jaggi 2019, Counterexample 2.
    """

    epsilon: Unit = 0.5

    metric = metrics.log10_gap
    optimum = 0.0
    reference_loss = None
    version = 1
    step_seconds = 2.4e-4
    lanes = True

    @property
    def target(self) -> float:
        """Half of the least that f is on the line x₁ + x₂ = 2."""
        return self.epsilon

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {split: (torch.empty(1, 0), torch.zeros(1)) for split in ("validation", "test")}

    def sample(self, generator: Generator) -> tuple[Tensor, Tensor]:
        return _first(self.samples(generator, 1))

    def samples(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        return torch.empty(count, 1, 0), torch.zeros(count, 1)

    def model(self) -> nn.Module:
        return Valley(self.epsilon)


class Valley(nn.Module):
    """f = ε|x₁ + x₂| + |x₁ − x₂| at the point ``x``, a scalar; its input is not looked at."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.x, self.epsilon = nn.Parameter(torch.ones(2)), epsilon

    def forward(self, _: Tensor) -> Tensor:
        along, across = self.x.sum(), self.x[0] - self.x[1]
        # not `across.abs()`, whose slope at 0 is 0
        return self.epsilon * along.abs() + torch.where(across >= 0, across, -across)


def _first(batches: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The first of some batches."""
    inputs, targets = batches
    return inputs[0], targets[0]


def _normal(batches: Tensor, generator: Generator) -> Tensor:
    """Batches filled with normal numbers, one after the other: all at once they would be others."""
    for batch in batches:
        batch.normal_(generator=generator)
    return batches
