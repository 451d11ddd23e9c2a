"""Preparation by batches, against plain loops over single images."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from planescope.data.batches import _ImageBatches, batches, crop_and_flip, resized
from planescope.data.load import Images, load, pixel_permutation
from planescope.data.options import DataOptions, Resize
from planescope.files.errors import CheckpointError, UsageError
from planescope.networks.build import build

PARITY = Path(__file__).parents[1] / "parity"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def images(count=50, height=32, width=32, **fields):
    rng = np.random.default_rng(0)
    return Images(
        images=torch.from_numpy(rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8)),
        labels=torch.arange(count),  # tells the example
        classes=tuple(map(str, range(count))),
        mean=MEAN,
        std=STD,
        name="own",
        split="train",
        **fields,
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def equal(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) > 0 and all(
        torch.equal(x, z) and torch.equal(y, w) for (x, y), (z, w) in zip(ours, theirs, strict=True)
    )


# ---- images in memory ----


@pytest.mark.parametrize("resize", list(Resize))
@pytest.mark.parametrize("together", [2, 3, 100])
def test_batches_prepared_together_as_on_a_gpu_are_the_same(resize, together, monkeypatch):
    data = images(count=11, resize=resize)
    options = {"batch_size": 2, "augment": True, "drop_last": True}
    alone = list(batches(data, shuffle=generator(), **options))
    monkeypatch.setattr(_ImageBatches, "_together", lambda _: together)
    assert equal(batches(data, shuffle=generator(), **options), alone)
    left = batches(data, shuffle=generator(), **options)
    for _ in itertools.islice(left, 3):
        pass
    again = batches(data, shuffle=generator(1), **options)
    again.load_state_dict(left.state_dict())
    assert equal(again, alone[3:])


def test_inputs_are_normalised_as_torchvision_does():
    data = images()
    plain = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    inputs, labels = zip(*batches(data, batch_size=16), strict=True)
    torch.testing.assert_close(torch.cat(inputs), plain(data.images), rtol=0, atol=1e-6)
    assert torch.equal(torch.cat(labels), data.labels)
    assert [len(part) for part in labels] == [16, 16, 16, 2]


def test_a_trained_network_classifies_as_many_digits_as_elsewhere():
    """Files, order and normalisation together: an independent implementation counted 945."""
    network = build("lenet", in_channels=1)
    snapshot = torch.load(PARITY / "lenet-epoch-12.tar", weights_only=True)
    network.load_state_dict(snapshot["model_state_dict"])
    prepared = batches(load("mnist", path=PARITY, split="val"), batch_size=128)
    with torch.no_grad():
        right = sum(int((network.eval()(x).argmax(1) == y).sum()) for x, y in prepared)
    expected = json.loads((PARITY / "expected.json").read_text())["validation"]["top1"]
    assert right == round(1000 * expected) == 945


def test_preparing_leaves_the_images_alone():
    data = images()
    before = data.images.clone()
    list(batches(data, batch_size=16, shuffle=generator(), augment=True))
    assert torch.equal(data.images, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_come_in_the_dtype_asked_for(dtype):
    data = images(8)
    (ours, _), (single, _) = (
        next(iter(batches(data, batch_size=8, dtype=asked))) for asked in (dtype, torch.float32)
    )
    assert torch.equal(ours, single.to(dtype))


def crop_and_flip_one(image, top, left, flip):
    """One image, pixel by pixel: flip, surround with 4 zeros, cut."""
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                y, x = row + top - 4, column + left - 4
                if 0 <= y < height and 0 <= x < width:
                    out[channel, row, column] = image[channel, y, width - 1 - x if flip else x]
    return out


@given(
    corners=st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 1)), min_size=1, max_size=6
    ),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
@settings(deadline=None)
def test_crop_and_flip_equal_a_plain_loop(corners, height, width):
    pixels = images(len(corners), height, width).images
    ours = crop_and_flip(pixels, *torch.tensor(corners).unbind(1))
    for image, corner, got in zip(pixels.numpy(), corners, ours.numpy(), strict=True):
        np.testing.assert_array_equal(got, crop_and_flip_one(image, *corner))


def test_augmented_batches_are_crops_and_flips_of_their_examples():
    data = images(60, 6, 5)
    for inputs, labels in batches(data, batch_size=7, shuffle=generator(), augment=True):
        std, mean = (torch.tensor(values).view(-1, 1, 1) for values in (STD, MEAN))
        pixels = (inputs * std + mean).mul(255).round().byte().numpy()
        for got, label in zip(pixels, labels.tolist(), strict=True):
            image = data.images[label].numpy()
            assert any(
                (got == crop_and_flip_one(image, top, left, flip)).all()
                for top in range(9)
                for left in range(9)
                for flip in (0, 1)
            )


def test_all_corners_and_flips_are_drawn_alike():
    # An image whose only bright pixel tells where the cut was and whether it was flipped.
    data = images(8100, 9, 9)
    data.images.zero_()
    data.images[:, :, 4, 4] = 255
    data.images[:, :, 4, 3] = 100
    (inputs, _) = next(iter(batches(data, batch_size=8100, shuffle=generator(), augment=True)))
    bright = inputs[:, 0].flatten(1).argmax(1)
    assert len(bright.unique()) == 81
    # 100 each; chi-square with 80 degrees of freedom is below 124.8 in 99.9 %.
    assert ((bright.bincount(minlength=81) - 100).square() / 100).sum() < 124.8
    second = inputs[:, 0].flatten(1).topk(2).indices
    flipped = (second[:, 1] > second[:, 0]).float().mean()
    assert abs(flipped - 0.5) < 0.02


@pytest.mark.parametrize("augment", [False, True])
def test_the_same_generator_gives_the_same_epochs(augment):
    def epochs(seed):
        prepared = batches(images(), batch_size=8, shuffle=generator(seed), augment=augment)
        return [batch for _ in range(3) for batch in prepared]

    assert equal(epochs(1), epochs(1))
    assert not equal(epochs(1), epochs(2))


def test_every_epoch_has_another_order_of_the_same_examples():
    prepared = batches(images(), batch_size=8, shuffle=generator())
    first, second = (torch.cat([labels for _, labels in prepared]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        pytest.param({}, [16, 16, 16, 2], id="keeps-the-last"),
        pytest.param({"drop_last": True}, [16, 16, 16], id="drops-the-last"),
    ],
)
def test_lengths_of_the_batches(options, lengths):
    prepared = batches(images(50), batch_size=16, **options)
    assert [len(labels) for _, labels in prepared] == lengths
    assert len(prepared) == len(lengths)


@given(done=st.integers(0, 14), drop_last=st.booleans(), augment=st.booleans())
@settings(deadline=None, max_examples=20)
def test_an_epoch_goes_on_where_its_state_was_taken(done, drop_last, augment):
    def prepare():
        return batches(
            images(), batch_size=8, shuffle=generator(5), augment=augment, drop_last=drop_last
        )

    whole = prepare()
    undisturbed = [batch for _ in range(3) for batch in whole]
    interrupted = prepare()
    stream = itertools.chain.from_iterable(itertools.repeat(interrupted))
    for _ in range(done):
        next(stream)
    state = interrupted.state_dict()
    resumed = batches(
        images(), batch_size=8, shuffle=generator(99), augment=augment, drop_last=drop_last
    )
    resumed.load_state_dict(state)
    assert resumed.state_dict().keys() == state.keys()
    rest = [batch for _ in range(4) for batch in resumed][: len(undisturbed) - done]
    assert equal(rest, undisturbed[done:])


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_processes_share_an_epoch(shuffled, ranks):
    prepared = [
        batches(images(50), batch_size=8, shuffle=generator() if shuffled else None, shard=shard)
        for shard in ((rank, ranks) for rank in range(ranks))
    ]
    parts = [torch.cat([labels for _, labels in part]) for part in prepared]
    assert [len(part) for part in prepared] == [-(-len(part) // 8) for part in parts]
    together = torch.cat(parts)
    assert len(together.unique()) == len(together) == (50 // ranks * ranks if shuffled else 50)
    assert not shuffled or len({len(part) for part in parts}) == 1


@pytest.mark.parametrize(
    ("batch_size", "drop_last"), [(0, False), (-1, False), (51, True)], ids=str
)
def test_batch_sizes_that_do_not_fit(batch_size, drop_last):
    with pytest.raises(UsageError, match="do not fit the 50 examples of the train split"):
        batches(images(50), batch_size=batch_size, drop_last=drop_last)


def test_augmentation_without_a_generator():
    with pytest.raises(ValueError, match="give a generator"):
        batches(images(), batch_size=8, augment=True)


def test_upscaling_is_the_usual_bilinear_one():
    data = images(2, 32, 32)
    upscaled = resized(data.images, Resize.UPSCALE_224)
    for image, got in zip(data.images, upscaled, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        plain = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))
        # Pillow rounds to bytes.
        np.testing.assert_allclose(got.permute(1, 2, 0), plain, atol=1.01)
    padded = resized(data.images, Resize.PAD_224)
    assert padded.shape == (2, 3, 224, 224)
    assert padded[:, :, 56:168, 56:168].count_nonzero() == padded.count_nonzero()


def test_upscaled_batches_have_the_announced_shape():
    data = images(4, resize=Resize.PAD_224)
    inputs, _ = next(iter(batches(data, batch_size=4)))
    assert inputs.shape[1:] == data.input_shape
    # Zeros around the image are black before they are normalised.
    assert inputs[0, 0, 0, 0] == pytest.approx(-MEAN[0] / STD[0])


# ---- image files ----


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            for number in range(4):
                path = tmp_path / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (60 + number, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels if number else pixels[:, :, 0]).save(path)
    return tmp_path


def test_files_are_resized_cropped_and_normalised(folder):
    data = load(f"folder:{folder}", split="val")
    plain = v2.Compose(
        [
            *(v2.PILToTensor(), v2.Resize(256), v2.CenterCrop(224)),
            *(v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)),
        ]
    )
    expected = torch.stack([plain(Image.open(path).convert("RGB")) for path in data.paths])
    inputs, labels = zip(*batches(data, batch_size=3, workers=0), strict=True)
    torch.testing.assert_close(torch.cat(inputs), expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat(labels), data.labels)


def test_augmentation_of_files_does_not_depend_on_workers(folder):
    data = load(f"folder:{folder}")

    def epochs(workers):
        prepared = batches(data, batch_size=3, shuffle=generator(), augment=True, workers=workers)
        return [batch for _ in range(2) for batch in prepared]

    torch.manual_seed(0)
    alone = epochs(0)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)  # the global generator was left alone
    assert equal(alone, epochs(2))
    assert not torch.equal(alone[0][0], alone[3][0])


def test_an_epoch_of_files_goes_on_where_it_stopped(folder):
    data = load(f"folder:{folder}")
    options = {"batch_size": 3, "augment": True, "workers": 0}
    whole = batches(data, shuffle=generator(), **options)
    undisturbed = [*whole, *whole]
    interrupted = batches(data, shuffle=generator(), **options)
    next(iter(interrupted))
    resumed = batches(data, shuffle=generator(9), **options)
    resumed.load_state_dict(interrupted.state_dict())
    assert equal([*resumed, *resumed], undisturbed[1:])


def test_pixels_of_files_are_shuffled_after_the_crop(folder):
    plain, shuffled = (
        load(f"folder:{folder}", options=DataOptions(shuffle_pixels=shuffle))
        for shuffle in (False, True)
    )
    (x, _), (y, _) = (next(iter(batches(d, batch_size=8, workers=0))) for d in (plain, shuffled))
    for index in range(8):
        order = pixel_permutation(0, index, 224 * 224)
        assert torch.equal(y[index].flatten(1), x[index].flatten(1)[:, order])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "cut"])
def test_a_broken_image_is_named(folder, workers, content):
    path = Path(folder, "train", "bee", "2.png")
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    data = load(f"folder:{folder}")
    with pytest.raises(CheckpointError, match=r"bee.2\.png: cannot be read as an image") as caught:
        list(batches(data, batch_size=3, workers=workers))
    assert "\n" not in str(caught.value)
