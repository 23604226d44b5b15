"""CellCentroidFormer: targets, decoding, training on discs, and X-volution in its neck."""

import pytest
import torch

from tests.core.networks import randomize
from xvolution import conversion_summary, convert, reparameterize
from xvolution.models import CellCentroidFormer, CentroidMaps, ModelError, centroid_loss, centroid_targets, decode

BOXES = torch.tensor([[4.0, 6.0, 20.0, 18.0], [30.5, 8.0, 41.25, 22.5], [25.0, 34.0, 35.0, 50.0]])


def small(**options):
    torch.manual_seed(0)
    return CellCentroidFormer("resnet10t", neck_channels=(32, 16), head_channels=(16, 16, 16), **options)


def discs(count=4, size=64):
    """Bright ellipses on a dark noisy ground, two to an image: (count, 3, size, size) and their boxes."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(size) + 0.5
    images, boxes = 0.05 * torch.randn(count, 3, size, size, generator=generator), []
    for image in images:
        radii = 6 + 5 * torch.rand(2, 2, generator=generator)
        centres = torch.tensor([[16.0, 20.0], [46.0, 44.0]]) + 6 * torch.rand(2, 2, generator=generator) - 3
        for (x, y), (rx, ry) in zip(centres, radii, strict=True):
            image[:, ((axis - x) / rx) ** 2 + ((axis[:, None] - y) / ry) ** 2 <= 1] += 1.0
        boxes.append(torch.cat([centres - radii, centres + radii], 1))
    return images, boxes


@pytest.mark.parametrize(("backbone", "size"), [("resnet10t", (64, 48)), ("resnet10t", (50, 37))])
def test_maps_have_the_size_of_the_image(backbone, size):
    maps = CellCentroidFormer(backbone, in_chans=1)(torch.randn(2, 1, *size))
    assert maps.heatmap.shape == (2, 1, *size)
    assert maps.sizes.shape == (2, 2, *size)
    assert all(m.min() >= 0 and m.max() <= 1 for m in maps)


def test_the_default_backbone_ends_at_one_sixteenth():
    model = CellCentroidFormer().eval()
    assert model.backbone.feature_info.reduction() == [16]
    assert model(torch.randn(1, 3, 64, 64)).heatmap.shape == (1, 1, 64, 64)


def test_targets_peak_at_the_centroids():
    maps = centroid_targets([BOXES], (56, 64))
    assert maps.heatmap.shape == (1, 1, 56, 64)
    for left, top, right, bottom in BOXES.tolist():
        row, column = int((top + bottom) / 2), int((left + right) / 2)
        near = maps.heatmap[0, 0, row - 3 : row + 4, column - 3 : column + 4]
        assert near.max() > 0.9
        assert near.max() - maps.heatmap[0, 0, row, column] < 1e-6
        size = maps.sizes[0, :, row, column] * torch.tensor([56.0, 64.0])
        torch.testing.assert_close(size, torch.tensor([bottom - top, right - left]))
    assert maps.heatmap[0, 0, -1, 0] < 1e-6
    assert (maps.sizes[0, :, -1, 0] == 0).all()


def test_decoding_the_targets_returns_the_boxes():
    other = torch.tensor([[10.0, 10.0, 14.0, 13.0]])
    first, second, none = decode(centroid_targets([BOXES, other, torch.zeros(0, 4)], (56, 64)))
    order = first.boxes[:, 0].argsort()
    torch.testing.assert_close(first.boxes[order], BOXES[BOXES[:, 0].argsort()], atol=1e-3, rtol=0)
    assert (first.scores.diff() <= 0).all()
    torch.testing.assert_close(second.boxes, other, atol=1e-3, rtol=0)
    assert none.boxes.shape == (0, 4)


def test_a_crop_and_the_whole_image_share_a_unit():
    """What a network learned from crops holds in whole images: equal cells have equal sizes in maps of any size."""
    crop, whole = (centroid_targets([BOXES], size, unit=(32, 48)) for size in ((56, 64), (80, 96)))
    torch.testing.assert_close(crop.sizes, whole.sizes[..., :56, :64])
    for maps in (crop, whole):
        (found,) = decode(maps, unit=(32, 48))
        order = found.boxes[:, 0].argsort()
        torch.testing.assert_close(found.boxes[order], BOXES[BOXES[:, 0].argsort()], atol=1e-3, rtol=0)
    for unit in ((0, 48), (32,), (float("nan"), 1)):
        with pytest.raises(ValueError, match="give a height and a width in pixels"):
            centroid_targets([BOXES], (56, 64), unit=unit)
        with pytest.raises(ValueError, match="give a height and a width in pixels"):
            decode(crop, unit=unit)


def test_a_cell_at_the_border_keeps_its_pixel():
    (found,) = decode(centroid_targets([torch.tensor([[-6.0, 10.0, 7.0, 22.0]])], (32, 32)))
    torch.testing.assert_close(found.boxes, torch.tensor([[-6.0, 10.0, 7.0, 22.0]]), atol=0.5, rtol=0)


def test_overlapping_cells_keep_their_own_sizes():
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [26.5, 19.5, 34.5, 29.5]])
    for found in decode(centroid_targets([boxes, boxes.flip(0)], (48, 48))):
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        assert sorted(sides[:, 0].round().tolist()) == [8, 32]


def test_the_loss_is_zero_at_the_target_and_counts_sizes_at_cells_only():
    target = centroid_targets([BOXES], (56, 64))
    assert centroid_loss(target, target) == 0
    elsewhere = torch.where(target.sizes == 0, 0.5, target.sizes)
    assert centroid_loss(CentroidMaps(target.heatmap, elsewhere), target) == 0
    wrong = CentroidMaps(target.heatmap, torch.where(target.sizes > 0, target.sizes + 0.2, 0.0))
    assert centroid_loss(wrong, target).item() == pytest.approx(0.5 * 2 * 0.2**2 / 2)
    empty = centroid_targets([torch.zeros(0, 4)], (56, 64))
    assert torch.isfinite(centroid_loss(target, empty))


def test_a_few_steps_overfit_discs():
    model = small().train()
    images, boxes = discs()
    target = centroid_targets(boxes, (64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # at 3e-3 one seed of six does not learn
    losses = []
    for _ in range(60):
        loss = centroid_loss(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        found = decode(model(images))
    for detections, wanted in zip(found, boxes, strict=True):
        assert len(detections.boxes) == len(wanted)
        order = detections.boxes[:, 0].argsort()
        assert (detections.boxes[order] - wanted).abs().max() < 4


def test_x_volution_in_the_neck_changes_nothing_and_merges():
    model = randomize(small()).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    converted = convert(model, names=("neck.*",), kernel_sizes=(3,))
    replaced = conversion_summary(converted).replaced
    assert len(replaced) == 8
    assert all(row.name.startswith("neck.") for row in replaced)
    for before, after in zip(expected, converted(x), strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for name, parameter in converted.neck.named_parameters():
            if "attention" in name:
                parameter.normal_(0, 0.3)
    randomize(converted)
    trained = converted.eval()(x)
    deployed = reparameterize(converted, example_inputs=x)
    for before, after in zip(trained, deployed(x), strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert (trained.heatmap - expected.heatmap).abs().max() > 1e-3


def test_bad_input_is_a_sentence():
    with pytest.raises(ModelError, match="timm cannot build the features of 'no_such_net'"):
        CellCentroidFormer("no_such_net")
    with pytest.raises(ModelError, match=r"vit_small_patch32_224 has features at 1/32.*features at 1/16"):
        CellCentroidFormer("vit_small_patch32_224")
    with pytest.raises(ValueError, match="give two numbers for the neck and three for the heads"):
        CellCentroidFormer("resnet10t", neck_channels=(8,))
    with pytest.raises(ValueError, match=r"boxes have the shape \(4,\)"):
        centroid_targets([torch.tensor([1.0, 2.0, 3.0, 4.0])], (8, 8))
    with pytest.raises(ValueError, match="a box has height or width 0"):
        centroid_targets([torch.tensor([[4, 2, 3, 4]])], (8, 8))
    with pytest.raises(ValueError, match="window is 4; it must be an odd number"):
        decode(centroid_targets([BOXES], (56, 64)), window=4)
