"""A small U-Net that finds bright lesions, on a map-style data set as one would have it anyway."""

import torch
from torch import nn
from torch.utils.data import Dataset, random_split

from clipbench import Count, metrics, workload


class Lesions(Dataset):
    """Images of 32×32 with one bright disc each, and its mask."""

    def __len__(self):
        return 160

    def __getitem__(self, number):
        draw = torch.Generator().manual_seed(number)
        x, y = 8 + 16 * torch.rand(2, generator=draw)
        radius = 4 + 4 * torch.rand((), generator=draw)
        rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        mask = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image = mask + 0.3 * torch.randn(32, 32, generator=draw)
        return image.unsqueeze(0), mask.long()


class UNet(nn.Module):
    """Two levels, with BatchNorm in both and dropout in the lower one."""

    def __init__(self, width):
        super().__init__()
        self.down = block(1, width)
        self.bottom = nn.Sequential(nn.MaxPool2d(2), block(width, 2 * width), nn.Dropout(0.2))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.head = nn.Sequential(block(2 * width, width), nn.Conv2d(width, 2, 1))

    def forward(self, images):
        high = self.down(images)
        return self.head(torch.cat([high, self.up(self.bottom(high))], dim=1))


def block(inputs, outputs):
    """A convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@workload("unet")
class SmallUNet:
    """Segmentation of discs in noise by a U-Net."""

    width: Count = 4

    metric = metrics.dice
    reference_loss = 0.362  # of the best constant prediction: 11.8 % of the pixels are lesion
    chance = 0.443  # Dice of the best constant mask: the pixels that are lesion in 23 % of images
    target_metric = 0.9  # Dice from which on we call a model trained
    margin = 0.01  # a difference of less Dice does not matter to us

    def data(self, generator):
        parts = random_split(Lesions(), [0.5, 0.25, 0.25], generator=generator)
        return dict(zip(("train", "validation", "test"), parts, strict=True))

    def model(self):
        return UNet(self.width)

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target)
