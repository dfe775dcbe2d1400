"""Workloads that label every pixel: one class has few pixels, and the overlap with it is the
metric.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.registry import Count, NonNegative, Unit, workload

# keeps the Dice of a class that neither is there nor predicted at 1; nnU-Net's and MONAI's value
SMOOTH = 1e-5
SIDE = 32  # of a phantom, in pixels
EVALUATED = 200  # phantoms of validation and of test
PATCH = 16  # the side of a patch of lesions, in pixels
PATCHES = 48  # of validation and of test: they cost a cell half its time
MASKED = 0.164  # Dice of the best constant mask over patches with a lesion, at imbalance 15


def dice_and_cross_entropy(output: Tensor, target: Tensor, batch_dice: bool = True) -> Tensor:
    r"""Cross entropy over all pixels plus one minus the soft Dice of every class but the
    background, a scalar.

    .. math:: L = -\frac{1}{N} \sum_i \log p_{i y_i} + 1 - \frac{1}{C - 1} \sum_{c=1}^{C-1}
              \frac{2 \sum_i p_{ic} [y_i = c] + \epsilon}{\sum_i p_{ic} + \sum_i [y_i = c] +
              \epsilon}, \quad p = \text{softmax}(z)

    nnU-Net (Isensee et al. 2021) takes the sums of Dice over the pixels of all images of a batch in
    its 2-D networks, and in those of 3-D patches that show a small part of an image; image by image
    if a patch shows nearly all of it. Image by image, an image without the class has the overlap
    ε / (Σp + ε): no gradient to speak of until Σp is as small as ε. There its slope in p reaches
    1/ε, that of a guard against 0/0; but p = softmax(z) keeps the sum of its slopes in z below 1/4.

    :param output: logits of N×C×….
    :param target: labels of N×…, 0 to C − 1.
    :param batch_dice: whether the sums of Dice go over all images together; else it is the mean of
        the images' own.
    """
    classes = torch.arange(output.shape[1], device=target.device).view(
        -1, *(1,) * (target.ndim - 1)
    )
    true = (target.unsqueeze(1) == classes).to(output.dtype)
    predicted, pixels = output.softmax(1), tuple(range(2, output.ndim))
    summed = (0, *pixels) if batch_dice else pixels
    both, either = (predicted * true).sum(summed), (predicted + true).sum(summed)
    dice = (2 * both + SMOOTH) / (either + SMOOTH)
    return nn.functional.cross_entropy(output, target) + 1 - dice[..., 1:].mean()


# ------------------------------------------------------------------------------------------ phantom


@workload("phantom")
class Phantom:
    r"""A test of class imbalance: a few bright pixels among many, where background everywhere is
    nearly right.

    Phantoms of 32×32 drawn anew at every step. k ellipses, whose centre, size, axes and direction
    are uniform, grow together until the lesion covers its share of the image, which is uniform
    between half and one and a half of 1/(1 + imbalance). With a smooth texture T, the mask M, its
    brightness b, uniform in [.5, 1.5], and noise,

    .. math:: x = \tau T + b M + \sigma \xi, \qquad \xi \sim N(0, I)

    T is normal on a coarse grid of 5×5 and bilinear between. Validation and test are 200 phantoms
    each, by the seed.

    A U-Net of three levels with w, 2w and 4w channels, two strides of 2, and in every level
    nnU-Net's convolution 3×3, InstanceNorm and leaky ReLU; Dice and cross entropy; inputs are
    N×1×32×32, targets N×32×32.

    :param width: w, the channels of the first level, at least 1.
    :param lesions: k, the ellipses of an image, at least 1.
    :param imbalance: pixels of background to one of lesion, on average, at least 1.
    :param texture: τ, in units of a lesion's mean brightness, at least 0.
    :param noise: σ, in the same units, at least 0.

    **Source**: drawn here; the network after Ronneberger, Fischer & Brox 2015 and Isensee et al.
    2021.
    """

    width: Count = 6
    lesions: Count = 3
    imbalance: Count = 15
    texture: NonNegative = 0.5
    noise: NonNegative = 0.3

    metric = metrics.dice
    chance = 0.175  # of the best constant mask, where at least a tenth of the images have lesion
    target = 0.16
    target_metric = 0.901
    margin = 0.005  # one of 200 images; a quarter of what Adam gains over SGD is less
    step_seconds = 0.010
    lanes = True
    version = 2  # 2: drawn in float64

    @property
    def reference_loss(self) -> float:
        """Of the best single probability of lesion, which is above its frequency: Dice asks for
        more.
        """
        share = 1 / (1 + self.imbalance)
        chance, entropy = _constants(share)
        return (entropy + 1 - 2 * share * chance / (share + chance)).min().item()

    def data(self, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
        return {split: self.sample(generator, EVALUATED) for split in ("validation", "test")}

    def sample(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        mask, brightness = _drawn(generator, batch, SIDE, self.lesions, self.imbalance)
        return _imaged(generator, mask, brightness, self.texture, self.noise), mask.long()

    def model(self) -> nn.Module:
        return SmallUNet(self.width)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return dice_and_cross_entropy(output, target)


def _constants(share: float) -> tuple[Tensor, Tensor]:
    """Probabilities between 0 and 1, and the cross entropy of each predicted everywhere, if this
    share of the pixels is lesion.
    """
    chance = torch.linspace(0, 1, 100_001, dtype=torch.float64)[1:-1]
    return chance, -(share * chance.log() + (1 - share) * (1 - chance).log())


def _drawn(
    generator: Generator, batch: int, side: int, ellipses: int, imbalance: int
) -> tuple[Tensor, Tensor]:
    """Masks of one lesion each, N×side×side, and how bright each is, N×1×1×1."""
    across, down, size, ratio, angle = torch.rand(
        5, batch, ellipses, 1, 1, generator=generator, dtype=torch.float64
    )
    burden, brightness = 0.5 + torch.rand(
        2, batch, 1, 1, 1, generator=generator, dtype=torch.float64
    )
    line = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    x, y = line - 0.1 - 0.8 * across, line.unsqueeze(1) - 0.1 - 0.8 * down
    along, aside = (math.pi * angle).cos(), (math.pi * angle).sin()
    length, breadth = 0.4 + 0.6 * size, (0.4 + 0.6 * size) * (0.5 + 0.5 * ratio)
    # How far every ellipse would have to grow to reach a pixel; the nearest ones are the lesion.
    reach = (
        ((x * along + y * aside) / length) ** 2 + ((y * along - x * aside) / breadth) ** 2
    ).amin(1)
    pixels = (burden.flatten() * side**2 / (1 + imbalance)).round().long().clamp(min=1)
    edge = reach.flatten(1).sort().values.gather(1, pixels.unsqueeze(1) - 1)
    return reach <= edge.unsqueeze(2), brightness


def _imaged(
    generator: Generator, mask: Tensor, brightness: Tensor, texture: float, noise: float
) -> Tensor:
    """Images of the masks on a smooth texture and with noise, N×1×H×W."""
    batch, *size = mask.shape
    coarse = torch.randn(batch, 1, 5, 5, generator=generator, dtype=torch.float64)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
    drawn = torch.randn(batch, 1, *size, generator=generator, dtype=torch.float64)
    return texture * smooth + brightness * mask.unsqueeze(1) + noise * drawn


# ---------------------------------------------------------------------------------------- lesions


@workload("lesions")
class Lesions:
    r"""A test of nnU-Net's setting at its smallest: a few patches at a step, of which some show no
    lesion at all.

    Patches of 16×16 drawn anew at every step, as phantoms are: a lesion of one ellipse that covers
    between half and one and a half of 1/(1 + imbalance), on texture and with noise. In a share e of
    the patches there is none. Of N patches ⌊eN + u⌋ are empty, u uniform in [0, 1): a third on
    average at any batch size, and at nnU-Net's batch of two never both, as its oversampling of
    foreground has it. Validation and test are 48 patches each, by the seed, 16 of them empty.

    The loss is that of nnU-Net's 2-D networks, whose Dice goes over the batch;
    ``batch_dice = false`` takes it patch by patch, as in 3-D patches that show nearly a whole
    image. The metric counts 1 for an empty patch in which nothing is predicted, and 0 for one with
    a single wrong pixel. The network is that of ``phantom``; inputs are N×1×16×16, targets N×16×16.

    :param width: w, the channels of the first level, at least 1.
    :param imbalance: pixels of background to one of lesion in a patch that has one, on average, at
        least 1.
    :param empty: e, the share of patches without a lesion, 0 to 1.
    :param texture: τ, in units of a lesion's mean brightness, at least 0.
    :param noise: σ, in the same units, at least 0.
    :param batch_dice: whether the sums of Dice go over all patches of a batch together.

    **Source**: drawn here; the setting after Isensee et al. 2021.
    """

    width: Count = 4
    imbalance: Count = 15
    empty: Unit = 1 / 3
    texture: NonNegative = 0.1
    noise: NonNegative = 0.2
    batch_dice: bool = True

    metric = metrics.dice
    target = 0.088
    target_metric = 0.908
    margin = 0.02  # one of 48 patches; a quarter of what Adam gains over SGD is less
    step_seconds = 0.006
    lanes = True

    @property
    def chance(self) -> float:
        """Of the best constant mask: no lesion anywhere, which is right for the empty patches; or
        the one that is best for all others, which is wrong for those.
        """
        return max(self.empty, MASKED * (1 - self.empty))

    @property
    def reference_loss(self) -> float:
        """Of the best single probability of lesion."""
        share = 1 / (1 + self.imbalance)
        chance, entropy = _constants((1 - self.empty) * share)
        if self.batch_dice:
            share *= 1 - self.empty
            overlap = 2 * share * chance / (share + chance)
        else:  # the mean over lesions' shares, which are uniform; an empty patch has no overlap
            ratio = chance / share
            overlap = 2 * chance * (1 - ratio * ((1.5 + ratio) / (0.5 + ratio)).log())
            overlap *= 1 - self.empty
        return (entropy + 1 - overlap).min().item()

    def data(self, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
        return {split: self.sample(generator, PATCHES) for split in ("validation", "test")}

    def sample(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        mask, brightness = _drawn(generator, batch, PATCH, 1, self.imbalance)
        spare = torch.rand(1, generator=generator, dtype=torch.float64)
        filled = torch.arange(1, batch + 1) > self.empty * batch + spare
        mask &= filled.view(-1, 1, 1)
        return _imaged(generator, mask, brightness, self.texture, self.noise), mask.long()

    def model(self) -> nn.Module:
        return SmallUNet(self.width)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return dice_and_cross_entropy(output, target, self.batch_dice)


class SmallUNet(nn.Module):
    """A U-Net of three levels: N×1×H×W to logits of N×2×H×W, H and W multiples of four."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.top = _convolution(1, width)
        self.middle = _convolution(width, 2 * width, stride=2)
        self.bottom = _convolution(2 * width, 4 * width, stride=2)
        self.to_middle = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.middle_again = _convolution(4 * width, 2 * width)
        self.to_top = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.top_again = _convolution(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        top = self.top(images)
        middle = self.middle(top)
        risen = self.to_middle(self.bottom(middle))
        risen = self.to_top(self.middle_again(torch.cat([middle, risen], 1)))
        return self.head(self.top_again(torch.cat([top, risen], 1)))


class InstanceNorm(nn.InstanceNorm2d):
    """In the weights' own precision under autocast, too, where lanes could not mix two."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.to(self.weight.dtype))


def _convolution(channels: int, features: int, stride: int = 1) -> nn.Module:
    # Without a bias, which the normalisation would take away again.
    return nn.Sequential(
        nn.Conv2d(channels, features, 3, stride, padding=1, bias=False),
        InstanceNorm(features, affine=True),
        nn.LeakyReLU(0.01),
    )
