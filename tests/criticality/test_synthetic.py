"""Synthetic inputs are chosen by the network's own answers."""

from __future__ import annotations

import numpy as np
import pytest

from planescope.criticality.synthetic import balanced, choose, softmax
from planescope.data.pictures import Bank
from planescope.files.errors import UsageError

BANK = Bank(channels=1, height=8, width=8)


def by_brightness(pictures):
    """A network of three classes: dark, middle, bright; surer the further from 0."""
    mean = pictures.mean(axis=(1, 2, 3))
    return np.stack([-4 * mean, np.zeros_like(mean), 4 * mean], axis=1)


def test_the_surest_of_each_class_are_taken():
    sureness = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    decisions = np.array([0, 0, 0, 1, 1, 1])
    assert balanced(sureness, decisions, 4, 2).tolist() == [0, 1, 3, 4]
    assert balanced(sureness, decisions, 4, 4).tolist() == [0, 3]  # one of each of four classes
    assert balanced(sureness, decisions, 1, 9).tolist() == [0]  # never more than asked for


def test_sets_hold_what_they_say():
    found = choose(by_brightness, BANK)
    p = softmax(by_brightness(found.images))
    sure = {name: p[which].max(axis=1) for name, which in found.sets.items()}
    assert list(found.sets) == ["surest", "stable", "any"]
    assert sure["surest"].mean() > sure["any"].mean()
    decisions = p[found.sets["surest"]].argmax(axis=1)
    assert max(np.bincount(decisions)) <= 400 // 3
    assert len(found.sets["any"]) == 400
    assert found.answers == len(np.unique(p.argmax(axis=1)))
    assert len(np.unique(found.images.reshape(len(found.images), -1), axis=0)) == len(found.images)


def test_the_same_inputs_are_chosen_each_time_and_from_large_banks_too(monkeypatch):
    first = choose(by_brightness, BANK)
    monkeypatch.setattr("planescope.criticality.synthetic._HELD_BYTES", 0)
    again = choose(by_brightness, BANK)
    assert np.array_equal(first.images, again.images)
    assert all(np.array_equal(first.sets[name], again.sets[name]) for name in first.sets)


def test_a_network_without_classes_gets_any_pictures():
    found = choose(lambda pictures: pictures, BANK, of_classes=False)
    assert list(found.sets) == ["any"]
    assert len(found.images) == 400


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (lambda pictures: np.tile([1.0, 0.0], (len(pictures), 1)), "one and the same answer"),
        (lambda pictures: np.full((len(pictures), 2), np.nan), "not finite"),
    ],
)
def test_a_network_that_tells_nothing_is_said(network, sentence):
    with pytest.raises(UsageError, match=sentence):
        choose(network, BANK)
