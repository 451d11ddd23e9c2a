"""Synthetic pictures are the same each time, of any size, about normalised, and in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from planescope.data import pictures
from planescope.data.pictures import Bank, leaves, noise, strokes
from planescope.files.errors import UsageError


def test_a_bank_is_the_same_each_time_and_another_by_seed():
    bank = Bank(channels=3, height=12, width=8)
    block = bank.blocks[5]
    assert np.array_equal(bank.draw(block), bank.draw(block))
    assert not np.array_equal(
        bank.draw(block), Bank(channels=3, height=12, width=8, seed=1).draw(block)
    )
    assert bank.draw(block).shape == (block[2], 3, 12, 8)
    assert bank.draw(block).dtype == np.float32


@pytest.mark.parametrize(("side", "total"), [(32, 9000), (64, 9000), (65, 1500), (224, 1500)])
def test_a_bank_has_as_many_pictures_as_it_says_each_in_one_block(side, total):
    bank = Bank(channels=3, height=side, width=side)
    blocks = bank.blocks
    assert sum(count for _, _, count in blocks) == bank.total == total
    assert len({(name, number) for name, number, _ in blocks}) == len(blocks)
    by_part = {name: sum(c for n, _, c in blocks if n == name) for name in pictures.PARTS}
    assert by_part["leaves"] == by_part["strokes"] == total * 2 // 9


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_about_normalised(channels):
    drawn = np.concatenate(list(Bank(channels=channels, height=12, width=12)))
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 0.1
    assert 0.8 < drawn.std() < 1.2


def test_moments_are_those_that_were_asked_for():
    size = {"channels": 2, "height": 8, "width": 8}
    plain = Bank(**size)
    moved = Bank(**size, mean=(0.5, -1.0), std=(0.25, 2.0))
    block = plain.blocks[0]
    expected = plain.draw(block) * np.array([0.25, 2.0])[:, None, None] + np.array(
        [[[0.5]], [[-1.0]]]
    )
    assert np.allclose(moved.draw(block), expected, atol=1e-6)


def test_strokes_are_bright_on_dark_and_grey():
    drawn = strokes((50, 3, 28, 28), np.random.default_rng(0))
    assert np.array_equal(drawn[:, 0], drawn[:, 2])
    assert drawn.min() == pytest.approx(-0.45 * 0.6)
    assert (drawn == drawn.min()).mean() > 0.5  # most of it is ground


def test_leaves_have_flat_areas_with_edges_between():
    steps = np.abs(np.diff(leaves((50, 1, 32, 32), np.random.default_rng(0)), axis=3))
    assert np.median(steps) < 1e-5
    assert steps.max() > 0.5


def test_noise_falls_with_frequency_by_its_slope():
    drawn = noise((200, 1, 32, 32), 1.5, np.random.default_rng(0))
    power = (np.abs(np.fft.rfft2(drawn)) ** 2).mean(axis=(0, 1))
    # Twice the frequency, 2^-1.5 of the amplitude: an eighth of the power.
    assert power[0, 4] / power[0, 8] == pytest.approx(8, rel=0.3)
    assert drawn.std(axis=(1, 2, 3)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"channels": 0}, "no pictures of 0×8×8"),
        ({"height": 2}, "4 to 1024 pixels"),
        ({"mean": (0.0, 0.0)}, "give one for each of 3 channels"),
        ({"mean": (float("nan"),)}, "mean holds NaN or an infinity"),
        ({"std": (0.0,)}, "std must be above 0"),
        ({"seed": -1}, "a seed must be 0 or more"),
    ],
)
def test_what_cannot_be_drawn_is_said(more, sentence):
    with pytest.raises(UsageError, match=sentence):
        Bank(**{"channels": 3, "height": 8, "width": 8, **more})
