"""Centre and activation rate from data, against all preactivations at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import planescope
from planescope.files.errors import UsageError
from planescope.measurement.activations import measure_activations


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),  # writes over what was measured
        nn.Conv2d(4, 5, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5 * 36, 6),
        nn.Dropout(0.5),
    )


NAMES = {"0": "1", "3": "3", "6": "6"}


def inputs(count=20):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def full_data(model, x, name):
    """All preactivations of a layer in float64, filters first, in one plain pass."""
    parts = list(model.double().eval())
    x = x.double()
    for part in parts[: int(name) + 1]:
        x = part(x)
    return x.transpose(0, 1).flatten(1).detach().numpy()


@pytest.mark.parametrize("batch_size", [1, 7, 20])
@pytest.mark.parametrize("labelled", [True, False])
def test_moments_equal_those_of_all_data_at_once(batch_size, labelled):
    model = network()
    # Some statistics of its own, so that evaluation differs from training.
    model(inputs() * 3 + 1)
    batches = inputs().split(batch_size)
    got = measure_activations(model, [(x, None) for x in batches] if labelled else batches, NAMES)
    assert list(got) == list(NAMES)
    for layer, name in NAMES.items():
        z = full_data(model, inputs(), name)
        assert got[layer].count == z.shape[1]
        np.testing.assert_allclose(got[layer].mean, z.mean(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got[layer].std, z.std(1), rtol=1e-5)
        np.testing.assert_allclose(got[layer].centre, z.mean(1) / z.std(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got[layer].rate, (z > 0).mean(1), atol=1e-9)
        model.float()


class Identity(nn.Module):
    """Its output is the data, by filter on axis 1."""

    def forward(self, x):
        return x


@given(
    rows=st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
@settings(deadline=None)
def test_moments_do_not_depend_on_the_batches(rows, cuts):
    z = torch.tensor(rows, dtype=torch.float64)
    parts = z.tensor_split(sorted(cuts))  # some of them empty
    got = measure_activations(Identity(), parts, {"z": ""})["z"]
    np.testing.assert_allclose(got.mean, z.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.std, z.std(0, correction=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(got.rate, (z > 0).double().mean(0))


def test_a_spread_that_is_small_beside_the_mean_is_kept():
    # Sums of squares in float32 would lose it: 1e4² has a spacing of 8.
    z = 1e4 + torch.tensor([[-1.0], [1.0]]).repeat(500, 1)
    got = measure_activations(Identity(), z.split(9), {"z": ""})["z"]
    assert got.mean[0] == pytest.approx(1e4, rel=1e-9)
    assert got.std[0] == pytest.approx(1, rel=1e-6)
    assert got.centre[0] == pytest.approx(1e4, rel=1e-6)


def test_a_filter_that_never_varies_has_no_centre():
    z = torch.tensor([[0.1, 1.0], [0.1, 3.0]]).repeat(50, 1)
    got = measure_activations(Identity(), z.split(7), {"z": ""})["z"]
    np.testing.assert_array_equal(np.isnan(got.centre), [True, False])
    assert got.std[0] == 0
    assert got.centre[1] == pytest.approx(2)  # mean 2, deviations ±1
    np.testing.assert_array_equal(got.rate, [1, 1])


def test_behind_batch_norm_the_centre_is_that_of_its_parameters():
    """On the data that gave the norm its statistics, κ_i = β_i / |γ_i| (METHOD, section 4)."""
    model = network()
    norm = model[1]
    norm.momentum = None  # plain average: the statistics of the one batch
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        norm.bias.copy_(torch.tensor([0.3, 1.0, -0.2, 0.0]))
    data = inputs(400)
    model(data)
    got = measure_activations(model, data.split(64), {"0": "1"})["0"]
    np.testing.assert_allclose(got.centre, [0.3, 0.5, -0.4, 0], atol=1e-3)


def test_the_network_is_left_as_it_was():
    model = network()
    model[1].eval()  # a frozen norm inside a network in training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_activations(model, inputs().split(5), NAMES)
    assert [part.training for part in model.modules()] == [True, True, False, *[True] * 6]
    assert not any(part._forward_hooks for part in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_network_is_left_as_it_was_when_the_data_fail():
    def broken():
        yield inputs(4)
        raise OSError("the disk is gone")

    model = network()
    with pytest.raises(OSError, match="the disk is gone"):
        measure_activations(model, broken(), NAMES)
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks for part in model.modules())


def test_a_layer_that_is_called_twice_is_measured_over_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = Identity()

        def forward(self, x):
            return self.same(self.same(x) + 2)

    got = measure_activations(Twice(), [torch.zeros(3, 1)], {"same": "same"})["same"]
    assert (got.count, got.mean[0], got.std[0], got.rate[0]) == (6, 1, 1, 0.5)


def test_the_features_of_a_linear_layer_are_its_last_axis():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(5, 7, 4)
    got = measure_activations(nn.Sequential(layer), [x], {"0": "0"})["0"]
    np.testing.assert_allclose(got.mean, layer(x).mean((0, 1)).detach(), rtol=1e-5)
    assert got.count == 35


def test_half_precision_is_measured_in_full():
    z = torch.full((4000, 1), 1.0, dtype=torch.bfloat16)
    z[::2] = 1.0078125  # the next number that bfloat16 has
    got = measure_activations(Identity(), z.split(1000), {"z": ""})["z"]
    assert got.mean[0] == pytest.approx(1 + 0.0078125 / 2, rel=1e-6)
    assert got.std[0] == pytest.approx(0.0078125 / 2, rel=1e-4)


def test_a_wrapped_network_is_measured_by_the_names_of_its_parts():
    model = network()
    plain = measure_activations(model, inputs().split(5), NAMES)
    wrapped = measure_activations(nn.DataParallel(model), inputs().split(5), NAMES)
    for layer in NAMES:
        np.testing.assert_array_equal(plain[layer].mean, wrapped[layer].mean)


class Counting(nn.Conv2d):
    """A layer that counts its calls in evaluation too, as an observer of a range does."""

    def __init__(self):
        super().__init__(3, 4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_what_a_forward_writes_into_buffers_is_put_back():
    layer = Counting()
    held = layer.calls
    measure_activations(nn.Sequential(layer), [inputs(2)], {"0": "0"})
    assert layer.calls is held
    assert held == 0


def test_torchscript_is_not_watched_and_says_so():
    made = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(UsageError, match="through TorchScript; give the module that it was made"):
        measure_activations(made, [inputs(2)], {"0": "0"})


@pytest.mark.parametrize(
    ("batches", "names", "message"),
    [
        ([inputs(2)], {"0": "layer1"}, "the network has no module 'layer1'; the nearest are"),
        ([], {"0": "0"}, "no data came through layer '0'"),
        ([inputs(0)], {"0": "0"}, "no data came through layer '0'"),
    ],
)
def test_what_cannot_be_measured(batches, names, message):
    with pytest.raises(UsageError, match=message):
        measure_activations(network(), batches, names)


class Unused(nn.Module):
    """A network with a layer that only training uses, and options of its own."""

    def __init__(self):
        super().__init__()
        self.used, self.auxiliary = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, pixels, mask=None):
        given = pixels if mask is None else pixels * mask
        return self.used(given) + self.auxiliary(given) if self.training else self.used(given)


def test_measure_takes_what_resets_take_and_names_layers_without_data():
    torch.manual_seed(0)
    model, x = Unused(), torch.randn(10, 3, 6, 6)
    labels = torch.arange(10)
    forms = [
        DataLoader(TensorDataset(x, labels), 4, shuffle=True),
        TensorDataset(x, labels),
        (x, labels),
        (x.numpy(), labels.numpy()),
        {"pixels": x, "labels": labels},
        [{"pixels": x, "mask": torch.ones(10, 1, 1, 1), "id": 7}],
        iter([x]),
    ]
    state = torch.get_rng_state()
    rates = []
    for form in forms:
        found = planescope.measure(model, data=form)
        assert [layer.activation_rate is None for layer in found.layers] == [False, True]
        assert any(note.startswith("data did not come through auxiliary") for note in found.notes)
        rates.append(found.layers[0].activation_rate)
    assert rates == [rates[0]] * len(forms)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    given = planescope.measure(model, data=[("odd", x)], unpack=lambda raw: (raw[1], None))
    assert given.layers[0].activation_rate == rates[0]
    for data, message in [
        ((x[:5], x[5:]), "two batches"),
        ([x[:, :1]], "data= do not fit the network"),
        (7, "cannot take batches from a int"),
    ]:
        with pytest.raises(UsageError, match=message):
            planescope.measure(model, data=data)
