"""What the segmentation workloads promise of their images, their split and their loss."""

import math
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize, minimize_scalar
from scipy.spatial import Delaunay
from torch import nn

from clipbench import feed, metrics, registry
from clipbench.engines import program, stacked
from clipbench.errors import UsageError
from clipbench.workloads import segmentation, tissue


def built(name, **fields):
    return registry.build("workload", name, fields)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def volumes():
    """The template as nilearn hands it out, T1 and the maps of grey and white matter:
    left–right, back–front, down–up.
    """
    from nilearn import datasets

    loads = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    return [load(resolution=2).get_fdata() for load in loads]


# ----------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_is_monais_dice_and_cross_entropy_over_the_batch_or_by_image(classes, batch_dice):
    from monai.losses import DiceCELoss

    logits = torch.randn(4, classes, 6, 5, generator=draw(1), dtype=torch.float64)
    labels = torch.randint(classes, (4, 6, 5), generator=draw(2))
    peer = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=batch_dice)
    found = segmentation.dice_and_cross_entropy(logits, labels, batch_dice)
    assert found.item() == pytest.approx(peer(logits, labels.unsqueeze(1)).item(), rel=1e-12)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_a_sure_and_right_prediction_costs_nothing_even_where_a_class_is_absent(batch_dice):
    labels = torch.tensor([[[0, 1], [1, 0]], [[0, 0], [0, 0]]])
    sure = 60 * nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
    found = segmentation.dice_and_cross_entropy(sure, labels, batch_dice)
    assert found.item() == pytest.approx(0, abs=1e-12)


def test_an_image_without_lesion_gives_no_gradient_of_the_size_of_a_guard():
    """Taken image by image, the smallest probability of a lesion that is not there would have a
    slope of thousands.
    """
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, :4] = 1
    logits = torch.full((2, 2, 8, 8), -7.0, dtype=torch.float64)
    logits[:, 0] = 7
    logits.requires_grad_()
    segmentation.dice_and_cross_entropy(logits, labels).backward()
    assert logits.grad[1].norm() < 1e-2


def test_by_image_the_slope_of_an_empty_images_dice_is_steep_in_p_and_below_a_quarter_in_z():
    """Over all sizes of Σp: the sum of its slopes in the logits is largest where Σp = ε, and there
    close to a quarter.
    """
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    sums = {}
    for lesion in torch.linspace(-30, 0, 301, dtype=torch.float64):
        logits = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
        logits[:, 1] = lesion
        logits.requires_grad_()
        dice = segmentation.dice_and_cross_entropy(logits, labels, batch_dice=False)
        (dice - nn.functional.cross_entropy(logits, labels)).backward()
        sums[logits.softmax(1)[:, 1].sum().item()] = logits.grad[:, 1].sum().item()
    steepest = max(sums, key=sums.__getitem__)
    assert 0.249 < sums[steepest] < 0.25
    assert steepest == pytest.approx(segmentation.SMOOTH, rel=0.1)


# ------------------------------------------------------------------------------------------ phantom


@pytest.mark.parametrize("imbalance", [1, 15, 100])
def test_phantoms_reference_is_the_loss_of_the_best_single_probability(imbalance):
    """Found again on drawn phantoms, through the workload's own loss."""
    work = built("phantom", imbalance=imbalance)
    labels = work.sample(draw(3), 1000)[1]

    def loss(logit):
        constant = (
            torch.tensor([0.0, logit], dtype=torch.float64)
            .view(1, 2, 1, 1)
            .expand(len(labels), 2, 32, 32)
        )
        return work.loss(constant, labels).item()

    assert minimize_scalar(loss, bounds=(-10, 10), method="bounded").fun == pytest.approx(
        work.reference_loss, rel=2e-3
    )
    frequency = -math.log(imbalance)
    assert work.reference_loss < loss(frequency)


def test_a_lesion_covers_between_half_and_one_and_a_half_of_its_share_evenly():
    pixels = built("phantom", imbalance=31).sample(draw(4), 3000)[1].sum((1, 2)).numpy()
    assert (pixels.min(), pixels.max()) == (16, 48)
    assert stats.kstest(pixels + draw_uniform(len(pixels)), "uniform", args=(16, 32)).pvalue > 1e-3


def draw_uniform(count):
    """What rounding to whole pixels took away."""
    return torch.rand(count, generator=draw(5)).numpy() - 0.5


def test_a_lesion_of_one_ellipse_is_convex_and_one_of_many_need_not_be():
    """Every pixel within the hull of its pixels belongs to it."""
    everywhere = torch.cartesian_prod(torch.arange(32), torch.arange(32)).numpy()

    def filled(mask):
        return int((Delaunay(mask.nonzero().numpy()).find_simplex(everywhere) >= 0).sum()) == int(
            mask.sum()
        )

    assert all(filled(mask) for mask in built("phantom", lesions=1).sample(draw(6), 40)[1])
    assert not all(filled(mask) for mask in built("phantom", lesions=3).sample(draw(6), 40)[1])


def test_without_texture_and_noise_a_phantom_is_its_lesion_times_its_brightness():
    images, masks = built("phantom", texture=0.0, noise=0.0).sample(draw(7), 2000)
    brightness = images.amax((1, 2, 3))
    assert torch.equal(images, brightness.view(-1, 1, 1, 1) * masks.unsqueeze(1))
    assert stats.kstest(brightness.numpy(), "uniform", args=(0.5, 1)).pvalue > 1e-3


def test_a_phantoms_noise_is_normal_of_the_deviation_it_is_set_to():
    noisy, still = (built("phantom", noise=noise).sample(draw(8), 50)[0] for noise in (0.3, 0.0))
    assert stats.kstest((noisy - still).flatten().numpy() / 0.3, "norm").pvalue > 1e-3


def test_a_phantoms_texture_is_smooth_and_normal_where_it_is_drawn():
    """At the corners it is the coarse grid itself; along a row it turns at the three columns
    between at most.
    """
    textured, plain = (
        built("phantom", texture=texture, noise=0.0).sample(draw(9), 500)[0]
        for texture in (0.5, 0.0)
    )
    texture = (textured - plain) / 0.5
    assert stats.kstest(texture[:, 0, ::31, ::31].flatten().numpy(), "norm").pvalue > 1e-3
    bends = texture.diff(n=2).abs() > 1e-4
    assert int(bends.any((0, 1, 2)).sum()) <= 6


@pytest.mark.parametrize("lesions", [1, 5])
def test_the_seed_draws_phantoms_and_every_step_draws_new_ones(lesions):
    work = built("phantom", lesions=lesions)
    once, again, other = (work.sample(draw(seed), 8) for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(once, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(once, other, strict=True))
    first, second = (inputs for inputs, _ in feed.batches(work, 0, 8, 2))
    assert not torch.equal(first, second)


def test_phantoms_validation_and_test_are_200_different_ones():
    splits = feed.splits(built("phantom"), 0)
    assert {split: tuple(inputs.shape) for split, (inputs, _) in splits.items()} == dict.fromkeys(
        ("validation", "test"), (200, 1, 32, 32)
    )
    assert not torch.equal(splits["validation"][1], splits["test"][1])


def test_the_u_net_sees_the_whole_phantom_and_has_few_weights():
    """A change at one corner reaches the far one: through two strides there is a way across."""
    model = feed.model(built("phantom"), 0, torch.float64)
    images = torch.zeros(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    model(images)[0, 1, 0, 0].backward()
    assert images.grad[0, 0, -1, -1] != 0
    assert sum(parameter.numel() for parameter in model.parameters()) < 10_000
    assert feed.model(built("phantom", width=3), 0).top[0].weight.shape == (3, 1, 3, 3)


# ------------------------------------------------------------------------------------------ lesions


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 48])
def test_a_third_of_the_patches_are_empty_and_at_nnunets_batch_never_both(batch):
    """Of any batch the whole number below or above a third, so often that the mean is a third."""
    generator = draw(20)
    batches = [built("lesions").sample(generator, batch)[1] for _ in range(300)]
    empty = np.array([int((masks.sum((1, 2)) == 0).sum()) for masks in batches])
    assert set(empty) <= {math.floor(batch / 3), math.ceil(batch / 3)}
    assert abs(empty.mean() - batch / 3) < 4 * 0.5 / math.sqrt(300)


def test_the_share_of_empty_patches_can_be_none_half_or_all():
    for share, empty in ((0.0, 0), (0.5, 8), (1.0, 16)):
        masks = built("lesions", empty=share).sample(draw(21), 16)[1]
        assert int((masks.sum((1, 2)) == 0).sum()) == empty


def test_an_empty_patch_is_drawn_like_the_others_but_for_its_lesion():
    """Its texture and noise are those that it would have with a lesion."""
    with_lesions, masks = built("lesions", empty=0.0).sample(draw(22), 9)
    images, left = built("lesions").sample(draw(22), 9)
    assert torch.equal(left[3:], masks[3:])
    assert torch.equal(images[3:], with_lesions[3:])
    assert not left[:3].any()
    outside = masks[:3].unsqueeze(1) == 0
    assert torch.equal(images[:3][outside], with_lesions[:3][outside])
    assert (images[:3] < with_lesions[:3])[~outside].all()


def test_chance_is_the_dice_of_the_best_constant_mask():
    """Found among masks of the most frequent pixels; nothing at all is best, as a third is
    empty, and a mask only if hardly any are.
    """
    for share in (1 / 3, 0.02):
        work = built("lesions", empty=share)
        masks = work.sample(draw(23), 6000)[1]
        order = masks.double().mean(0).flatten().argsort(descending=True)
        found = []
        for size in range(0, 257, 4):
            constant = torch.zeros(256, dtype=torch.float64)
            constant[order[:size]] = 1
            logits = (constant - 0.5).view(1, 1, 16, 16).expand(len(masks), 1, 16, 16)
            found.append(metrics.dice(logits, masks))
        assert max(found) == pytest.approx(work.chance, abs=0.005)
        assert (found[0] == max(found)) == (share == 1 / 3)


@pytest.mark.parametrize("empty", [0.0, 1 / 3])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_lesions_reference_is_the_loss_of_the_best_single_probability(batch_dice, empty):
    work = built("lesions", batch_dice=batch_dice, empty=empty)
    labels = work.sample(draw(24), 3000)[1]

    def loss(logit):
        constant = torch.tensor([0.0, logit], dtype=torch.float64).view(1, 2, 1, 1)
        return work.loss(constant.expand(len(labels), 2, 16, 16), labels).item()

    assert minimize_scalar(loss, bounds=(-8, 8), method="bounded").fun == pytest.approx(
        work.reference_loss, rel=2e-3
    )


def test_lesions_draw_new_patches_at_every_step_and_evaluate_on_48_others():
    work = built("lesions")
    first, second = (inputs for inputs, _ in feed.batches(work, 0, 2, 2))
    assert not torch.equal(first, second)
    splits = feed.splits(work, 0)
    for inputs, targets in splits.values():
        assert inputs.shape == (48, 1, 16, 16)
        assert int((targets.sum((1, 2)) == 0).sum()) == 16
    assert not torch.equal(splits["validation"][0], splits["test"][0])
    assert not torch.equal(splits["test"][0], feed.splits(work, 1)["test"][0])


# -------------------------------------------------------------------------------------------- lanes


@pytest.mark.parametrize("name", ["phantom", "lesions", "tissue"])
def test_lanes_have_the_gradients_that_the_loop_has(name):
    """Traced for two lanes of two seeds, in float64; and no operation asks for more of them."""
    work = built(name, width=4)
    assert work.lanes
    programs = stacked.Programs(work, torch.float64, "cpu")
    modules = [feed.model(work, seed, torch.float64) for seed in (0, 1)]
    batches = [next(iter(feed.batches(work, seed, 2, 1, torch.float64))) for seed in (0, 1)]
    arguments = (
        torch.stack([programs.model.flat(module) for module in modules]),
        *map(torch.stack, zip(*batches, strict=True)),
    )
    gradient, output = programs.gradient(*arguments), programs.output(*arguments[:2])
    grads, losses = gradient(*arguments)
    assert program.grain(gradient) == program.grain(output) == 1
    for lane, (module, (inputs, targets)) in enumerate(zip(modules, batches, strict=True)):
        loss = work.loss(module(inputs), targets)
        loss.backward()
        torch.testing.assert_close(losses[lane], loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            grads[lane], programs.model.flat_grad(module), rtol=1e-10, atol=1e-14
        )
        torch.testing.assert_close(
            output(*arguments[:2])[lane], module(inputs).detach(), rtol=1e-10, atol=1e-12
        )


# ------------------------------------------------------------------------------------------- tissue


def test_tissues_labels_are_the_largest_of_the_templates_maps(volumes):
    """Voxel by voxel, found again in the volumes; and what was cut off has no tissue."""
    t1, grey, white = volumes
    images, labels = tissue._slices()
    labelled = (np.maximum(grey, white) > 1 - grey - white) * np.where(white > grey, 2, 1)
    enough = np.minimum(*((labelled == label).sum((0, 1)) for label in (1, 2))) >= 200
    assert enough.sum() == tissue.SLICES
    assert np.diff(np.flatnonzero(enough)).max() == 1
    found = np.moveaxis(labelled[9:89, 11:107, enough], 2, 0)
    second, first = np.sort([1 - grey - white, grey, white], axis=0)[1:]
    clear = np.moveaxis((first - second > 1e-3)[9:89, 11:107, enough], 2, 0)
    assert clear.mean() > 0.998
    assert (labels.numpy() == found)[clear].all()
    np.testing.assert_allclose(
        images[:, 0].numpy(), np.moveaxis(t1[9:89, 11:107, enough], 2, 0), atol=1e-6
    )
    assert (labelled[..., enough] > 0).sum() == (found > 0).sum()


def test_white_matter_is_brighter_than_grey_and_grey_brighter_than_the_rest():
    images, labels = tissue._slices()
    rest, grey, white = (images.squeeze(1)[labels == label].median().item() for label in range(3))
    assert rest < grey < white


def test_tissues_template_is_symmetric_so_that_a_flip_would_be_no_augmentation(volumes):
    for volume in volumes:
        np.testing.assert_allclose(volume, volume[::-1], atol=1e-9)


def test_what_is_evaluated_is_two_slices_or_more_from_what_trains():
    rows = {split: index.tolist() for split, index in tissue.positions(tissue.SLICES).items()}
    assert {split: len(index) for split, index in rows.items()} == {
        "train": 36,
        "validation": 8,
        "test": 8,
    }
    for split in ("validation", "test"):
        assert min(abs(one - other) for one in rows[split] for other in rows["train"]) == 2
    assert min(abs(one - other) for one in rows["validation"] for other in rows["test"]) > 2
    assert len({place for index in rows.values() for place in index}) == 52


def test_tissue_trains_on_training_slices_only(monkeypatch):
    """With every other slice spoilt, the batches are the same to the bit."""
    work, (images, labels) = built("tissue"), tissue._slices()
    before = work.sample(draw(10), 64)
    spoilt = torch.full_like(images, math.nan)
    train = tissue.positions(tissue.SLICES)["train"]
    spoilt[train] = images[train]
    monkeypatch.setattr(tissue, "_slices", lambda: (spoilt, labels))
    assert torch.equal(work.sample(draw(10), 64)[0], before[0])


def test_augmentation_moves_image_and_labels_alike(monkeypatch):
    """With the labels' outline as the image, the two still agree, as they do not where one is a
    voxel off.
    """
    _, labels = tissue._slices()
    monkeypatch.setattr(tissue, "_slices", lambda: ((labels > 0).float().unsqueeze(1), labels))
    images, moved = built("tissue", noise=0.0).sample(draw(11), 32)
    outline = (images / images.amax((2, 3), keepdim=True) > 0.5).squeeze(1)
    assert (outline == (moved > 0)).float().mean() > 0.99
    for axis in (1, 2):
        assert (outline.roll(1, axis) == (moved > 0)).float().mean() < 0.98


def test_augmentation_stays_within_what_it_says():
    """The middle of the brain moves by four voxels at most, its size changes by a fifth of its
    area, its brightness by a fifth.
    """
    work, (images, labels) = built("tissue", noise=0.0), tissue._slices()
    drawn, moved = work.sample(draw(12), 200)
    train = tissue.positions(tissue.SLICES)["train"]
    areas, found = (labels[train] > 0).sum((1, 2)).double(), (moved > 0).sum((1, 2)).double()
    assert found.min() > areas.min() * 0.8
    assert found.max() < areas.max() * 1.25
    line = torch.arange(80.0).view(1, 80, 1)
    centres = ((moved > 0) * line).sum((1, 2)) / (moved > 0).sum((1, 2)) - 39.5
    # four, and what a turn of ten degrees adds to a brain that is not in the middle
    assert 2 < centres.abs().max() < 7
    assert drawn.max() <= 1.2 * images.max()
    assert drawn.amax((1, 2, 3)).min() > 0.75 * images[train].amax((1, 2, 3)).min()


def test_the_seed_draws_tissues_batches_and_not_its_split():
    work = built("tissue")
    once, again, other = (next(iter(feed.batches(work, seed, 4, 1))) for seed in (0, 0, 1))
    assert torch.equal(once[0], again[0])
    assert not torch.equal(once[0], other[0])
    for split in ("validation", "test"):
        assert torch.equal(feed.splits(work, 0)[split][0], feed.splits(work, 1)[split][0])


def test_tissues_reference_is_the_loss_of_the_best_constant_prediction():
    work, (_, labels) = built("tissue"), tissue._slices()

    def loss(logits):
        constant = (
            torch.tensor([0.0, *logits], dtype=torch.float64)
            .view(1, 3, 1, 1)
            .expand(len(labels), 3, 80, 96)
        )
        return work.loss(constant, labels).item()

    assert minimize(loss, [-1.0, -1.0], method="Nelder-Mead").fun == pytest.approx(
        work.reference_loss, rel=1e-4
    )


def test_tissue_declares_what_its_results_are_judged_by():
    work = built("tissue")
    assert work.metric is metrics.dice
    assert 0 < work.target < work.reference_loss


def test_tissues_network_is_monais_of_206_thousand_weights():
    from monai.networks.nets import UNet

    model = feed.model(built("tissue"), 0)
    assert isinstance(model, UNet)
    assert sum(parameter.numel() for parameter in model.parameters()) == 205_856
    assert not [name for name, _ in model.named_buffers()]
    assert model(torch.zeros(1, 1, 80, 96)).shape == (1, 3, 80, 96)


def test_the_template_comes_without_a_network_and_is_read_once(monkeypatch):
    def refused(*_):
        raise AssertionError("tissue asked for a network")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    tissue._slices.cache_clear()
    assert tissue._slices() is tissue._slices()


@pytest.mark.parametrize(
    ("module", "hook"), [("nilearn", "data"), ("monai.networks.nets.unet", "model")]
)
def test_tissue_without_its_extra_says_what_to_install(monkeypatch, module, hook):
    tissue._slices.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UsageError,
        match=rf'workload "tissue": {module} is not installed; `pip install clipbench\[medical\]`',
    ):
        getattr(built("tissue"), hook)()
    tissue._slices.cache_clear()


def test_the_workloads_are_imported_without_the_extra():
    source = (
        "import sys, clipbench.workloads; sys.exit(bool({'monai', 'nilearn', 'nibabel'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
