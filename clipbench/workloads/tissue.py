"""Real MRI whose tissues are labelled pixel by pixel, with nnU-Net's own method."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.errors import UsageError
from clipbench.registry import Count, NonNegative, workload
from clipbench.workloads.segmentation import dice_and_cross_entropy

SLICES = 60  # of the template, each with both tissues


@workload("tissue")
class Tissue:
    r"""A test of nnU-Net's own method on real MRI, and of whether its clip norm of 12 ever matters.

    Grey matter (1), white matter (2) or neither (0) on axial T1 slices of the ICBM 152 template
    (nonlinear, 2009a), the average of real MRI of 152 adults, without the skull, as nilearn's wheel
    ships it with maps of the two tissues. McGill's licence grants use, copies and changes without
    fee where its notice stays; nilearn's page calls the licence unknown. Resampled to 2 mm; a voxel
    is what is largest: grey, white or the rest. It is one average brain: measured is how well a
    network fills in slices between others, not how well it would do on a patient.

    The 60 slices with at least 200 voxels of each tissue, from below. Of every 15 neighbours, 9
    train. Of the 6 between these the middle four are evaluated, validation and test by turns, and
    the outer two not used, so that what is evaluated is 4 mm or more from what trains: 36 train, 8
    validate, 8 test. A split at random would put most test slices 2 mm from one that trains. The
    split is the same for every seed, which draws weights, slices and augmentation: turned by up to
    10°, scaled by up to 10 %, shifted by up to 4 voxels, brightness changed by up to 20 %, and
    noise. No flips: the template is symmetric.

    MONAI's U-Net of four levels with w, 2w, 4w and 8w channels, one
    residual unit each, InstanceNorm and PReLU; Dice and cross entropy; inputs are N×1×80×96,
    targets N×80×96. It has lanes, which gain nothing on a CPU, but for ``on = "example"``. It needs
    the extra ``medical``.

    :param width: w, the channels of the first level, at least 1.
    :param noise: the deviation of the noise of augmentation, in units of the template's largest
        value, at least 0.

    **Source**: Fonov et al. 2009, 2011; the network after Ronneberger, Fischer & Brox 2015 and
    Kerfoot et al. 2019.
    """

    width: Count = 16
    noise: NonNegative = 0.05

    metric = metrics.dice
    chance = 0.630  # of the best constant mask: the slices are registered
    target = 0.21
    target_metric = 0.908
    margin = 0.005  # half a point, as segmentation is compared; Adam gains .002 over SGD
    # of .494, .313 and .193, above the frequencies of both tissues: Dice asks for more
    reference_loss = 1.7554
    step_seconds = 0.034
    lanes = True
    version = 2  # 2: augmented in float64

    def ready(self) -> None:
        """Whether the extra is installed.

        :raises UsageError: it is not.
        """
        _slices()
        _unet()

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        images, labels, rows = *_slices(), positions(SLICES)
        return {
            split: (images[rows[split]], labels[rows[split]]) for split in ("validation", "test")
        }

    def sample(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        images, labels = _slices()
        train = positions(SLICES)["train"]
        drawn = train[torch.randint(len(train), (batch,), generator=generator)]
        turn, size, across, down, brightness = (
            2 * torch.rand(5, batch, generator=generator, dtype=torch.float64) - 1
        )
        turn, size = math.radians(10) * turn, 1 + 0.1 * size
        height, width = images.shape[2:]
        along, aside = size * turn.cos(), size * turn.sin()
        # In coordinates from −1 to 1, whose unit is not the same down and across.
        rows = [
            [along, -aside * height / width, 8 * across / width],
            [aside * width / height, along, 8 * down / height],
        ]
        grid = nn.functional.affine_grid(
            torch.stack([torch.stack(row, 1) for row in rows], 1),
            [batch, 1, height, width],
            align_corners=False,
        )
        moved = nn.functional.grid_sample(images[drawn].double(), grid, align_corners=False)
        tissue = nn.functional.grid_sample(
            labels[drawn].unsqueeze(1).double(), grid, mode="nearest", align_corners=False
        )
        noise = torch.randn(moved.shape, generator=generator, dtype=torch.float64)
        return (1 + 0.2 * brightness).view(
            -1, 1, 1, 1
        ) * moved + self.noise * noise, tissue.squeeze(1).long()

    def model(self) -> nn.Module:
        channels = [self.width * 2**level for level in range(4)]
        return _unet()(
            spatial_dims=2,
            in_channels=1,
            out_channels=3,
            channels=channels,
            strides=(2, 2, 2),
            num_res_units=1,
        )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return dice_and_cross_entropy(output, target)


def positions(slices: int) -> dict[str, Tensor]:
    """Which of so many slices, from below, are in which split: of every 15, 5 train, 6 are held
    out and 4 train.
    """
    number = torch.arange(slices)
    within, turn = number % 15, number // 15 % 2
    evaluated = (within > 5) & (within < 10)
    chosen = {
        "train": (within < 5) | (within > 10),
        "validation": evaluated & (turn == 0),
        "test": evaluated & (turn == 1),
    }
    return {split: number[mask] for split, mask in chosen.items()}


@lru_cache(maxsize=1)
def _slices() -> tuple[Tensor, Tensor]:
    """The slices, 60×1×80×96 in [0, 1], and their labels.

    :raises UsageError: nilearn, or something that it needs, is not installed.
    """
    try:
        from nilearn import datasets
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    templates = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    t1, grey, white = (
        torch.from_numpy(load(resolution=2).get_fdata(dtype="float32")) for load in templates
    )
    # The maps come in 255 steps and tie at times: rounded, so that no last bit decides.
    labels = torch.stack([1 - grey - white, grey, white]).round(decimals=4).argmax(0)
    # Cut to the brain, with room to move; axial slices first.
    t1, labels = (volume[9:89, 11:107].permute(2, 0, 1) for volume in (t1, labels))
    both = torch.stack([(labels == tissue).sum((1, 2)) for tissue in (1, 2)]).amin(0) >= 200
    return t1[both].clamp(0, 1).unsqueeze(1).contiguous(), labels[both].contiguous()


def _unet() -> type[nn.Module]:
    """MONAI's class.

    :raises UsageError: MONAI, or something that it needs, is not installed.
    """
    try:
        from monai.networks.nets.unet import UNet
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return UNet


def _missing(error: ModuleNotFoundError) -> UsageError:
    return UsageError(
        f'workload "tissue": {error.name} is not installed; `pip install clipbench[medical]` '
        f"brings what it needs."
    )
