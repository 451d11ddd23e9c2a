"""Which axis of a stored weight is what: by biases, names, shapes, neighbours."""

from __future__ import annotations

import re

import numpy as np
import pytest

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Kind, Layout, StateDict, Tensor
from planescope.networks.state.axes import Wanted
from planescope.networks.state.layers import Hints, describe

CONV, POINTWISE, TRANSPOSED, LINEAR = Kind


def numbered(shape):
    """A tensor in which each element is its own position in the file."""
    return Tensor(shape, "float32", lambda: np.arange(np.prod(shape), dtype=float).reshape(shape))


def described(shapes, *, in_order=True, **wanted):
    state = StateDict(tensors={n: numbered(s) for n, s in shapes.items()}, in_order=in_order)
    return describe(state, Hints(axes=Wanted(**wanted)))


def layers_of(shapes, **options):
    return {x.name: (x.kind, x.weight.shape) for x in described(shapes, **options).layers}


@pytest.mark.parametrize(
    ("shapes", "kind", "stored"),
    [
        pytest.param({"c.kernel": (3, 3, 4, 16), "c.bias": (16,)}, CONV, (16, 4, 3, 3), id="flax"),
        pytest.param({"c.kernel": (3, 3, 4, 16)}, CONV, (16, 4, 3, 3), id="flax-without-bias"),
        pytest.param({"c.kernel": (5, 4, 16), "c.bias": (16,)}, CONV, (16, 4, 5), id="1-d"),
        pytest.param(
            {"c.kernel": (3, 3, 3, 4, 9), "c.bias": (9,)}, CONV, (9, 4, 3, 3, 3), id="3-d"
        ),
        pytest.param({"c.kernel": (1, 1, 4, 16)}, POINTWISE, (16, 4, 1, 1), id="pointwise"),
        pytest.param({"d.kernel": (4, 16), "d.bias": (16,)}, LINEAR, (16, 4), id="dense"),
        pytest.param({"d.kernel": (4, 16)}, LINEAR, (16, 4), id="dense-without-bias"),
        pytest.param({"d.kernel": (1, 16), "d.bias": (16,)}, LINEAR, (16, 1), id="one-input"),
        pytest.param({"d/w": (4, 16), "d/b": (16,)}, LINEAR, (16, 4), id="haiku"),
        pytest.param({"c/weights": (3, 3, 4, 16)}, CONV, (16, 4, 3, 3), id="slim"),
        pytest.param({"c/W": (3, 3, 4, 16), "c/b": (16,)}, CONV, (16, 4, 3, 3), id="tensorpack"),
        pytest.param({"c/W": (16, 4, 3, 3), "c/b": (16,)}, CONV, (16, 4, 3, 3), id="chainer"),
        pytest.param({"c": (3, 3, 4, 16)}, CONV, (16, 4, 3, 3), id="bare-by-its-form"),
        pytest.param({"c": (16, 4, 3, 3)}, CONV, (16, 4, 3, 3), id="bare-of-torch"),
        pytest.param({"d.weight": (4, 16), "d.bias": (16,)}, LINEAR, (16, 4), id="gpt-2"),
        pytest.param({"c.weight": (3, 3, 4, 16), "c.bias": (16,)}, CONV, (16, 4, 3, 3), id="hwio"),
        pytest.param(
            {"u.kernel": (2, 2, 32, 64), "u.bias": (32,)}, TRANSPOSED, (32, 64, 2, 2), id="keras-up"
        ),
        pytest.param(
            {"ConvTranspose_0.kernel": (2, 2, 64, 32), "ConvTranspose_0.bias": (32,)},
            TRANSPOSED,
            (32, 64, 2, 2),
            id="flax-up",
        ),
        pytest.param(
            {"u.weight": (64, 32, 2, 2), "u.bias": (32,)}, TRANSPOSED, (32, 64, 2, 2), id="torch-up"
        ),
        pytest.param(
            {"u.weight": (16, 3, 3, 3), "u.bias": (3,)}, TRANSPOSED, (3, 16, 3, 3), id="to-an-image"
        ),
        pytest.param(
            {"u.weight": (8, 3, 4, 4), "u.bias": (6,)}, TRANSPOSED, (6, 4, 4, 4), id="two-groups"
        ),
        pytest.param(
            {"c.depthwise_kernel": (3, 3, 8, 2), "c.bias": (16,)},
            CONV,
            (16, 1, 3, 3),
            id="depthwise",
        ),
        pytest.param(
            {"dw.kernel": (3, 3, 8, 1), "dw.bias": (8,)}, CONV, (8, 1, 3, 3), id="depthwise-kernel"
        ),
        pytest.param({"dw.kernel": (3, 3, 1, 8)}, CONV, (8, 1, 3, 3), id="depthwise-of-flax"),
        pytest.param({"c.weight": (8, 3, 11, 11)}, CONV, (8, 3, 11, 11), id="alexnet"),
    ],
)
def test_the_filters_are_where_the_evidence_says(shapes, kind, stored):
    ((found, shape),) = layers_of(shapes).values()
    assert (found, shape) == (kind, stored)


@pytest.mark.parametrize(
    ("shapes", "order"),
    [
        ({"c.kernel": (3, 5, 4, 16), "c.bias": (16,)}, (3, 2, 0, 1)),
        ({"d.kernel": (4, 16), "d.bias": (16,)}, (1, 0)),
        ({"u.kernel": (2, 3, 32, 64), "u.bias": (32,)}, (2, 3, 0, 1)),
        ({"u.weight": (64, 32, 2, 3), "u.bias": (32,)}, (1, 0, 2, 3)),
    ],
)
def test_each_filter_has_its_own_weights(shapes, order):
    """In the file's order of axes, for each output the taps of each input."""
    (layer,) = described(shapes).layers
    stored = numbered(next(iter(shapes.values()))).read()
    np.testing.assert_array_equal(layer.weight.read(), stored.transpose(order))


def test_depthwise_filters_of_keras_are_one_for_each_input_and_multiple():
    (layer,) = described({"c.depthwise_kernel": (3, 3, 4, 2), "c.bias": (8,)}).layers
    stored = numbered((3, 3, 4, 2)).read()
    for i in range(4):
        for m in range(2):
            np.testing.assert_array_equal(layer.weight.read()[2 * i + m, 0], stored[:, :, i, m])
    assert layer.groups == 4


def test_what_some_biases_tell_holds_for_the_rest_of_their_kind():
    """GPT-2's linear maps are (in, out), the square ones among them."""
    shapes = {
        "h.0.c_attn.weight": (4, 12),
        "h.0.c_attn.bias": (12,),
        "h.0.c_proj.weight": (4, 4),
        "h.0.c_proj.bias": (4,),
    }
    found = described(shapes)
    square = next(x for x in found.layers if x.name == "h.0.c_proj")
    np.testing.assert_array_equal(square.weight.read(), numbered((4, 4)).read().T)
    assert any("c_attn lie on the last axis, which its name does not" in n for n in found.notes)


def test_the_chain_of_layers_tells_where_nothing_else_does():
    assert layers_of({"W1": (9, 6), "W2": (6, 4), "W3": (4, 2)}) == {
        "W1": (LINEAR, (6, 9)),
        "W2": (LINEAR, (4, 6)),
        "W3": (LINEAR, (2, 4)),
    }
    assert layers_of({"W1": (6, 9), "W2": (4, 6)})["W1"] == (LINEAR, (6, 9))


def test_a_name_against_a_shape_is_followed_and_told():
    found = described({"c.kernel": (8, 3, 3, 3)})
    assert found.layers[0].filters == 3
    assert list(found.notes) == [
        "by its name the filters of c lie on the last axis, though its shape looks otherwise; "
        "--layout settles it"
    ]
    given = described({"c.kernel": (8, 3, 3, 3)}, layouts=[(None, Layout.FIRST)])
    assert (given.layers[0].filters, given.notes) == (8, ())


def test_a_layout_is_given_for_some_layers():
    shapes = {"a.weight": (4, 4), "b.weight": (4, 4)}
    found = described(shapes, layouts=[(re.compile("^b"), Layout.LAST)])
    a, b = (layer.weight.read() for layer in found.layers)
    np.testing.assert_array_equal(a, b.T)


DCGAN = {
    "main.0.weight": (100, 64, 4, 4),
    "main.3.weight": (64, 32, 4, 4),
    "main.6.weight": (32, 32, 4, 4),
    "main.9.weight": (32, 3, 4, 4),
}


def norm(name, width):
    return {
        f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")
    }


def test_a_generator_without_biases_is_told_by_norms_and_chain():
    shapes = dict(DCGAN)
    for at, width in ((1, 64), (4, 32), (7, 32)):
        shapes |= norm(f"main.{at}", width)
    found = described(shapes)
    assert {x.name: (x.kind, x.filters) for x in found.layers} == {
        "main.0": (TRANSPOSED, 64),
        "main.3": (TRANSPOSED, 32),
        "main.6": (TRANSPOSED, 32),
        "main.9": (TRANSPOSED, 3),
    }
    assert any("read as transposed by name and by the layers beside" in n for n in found.notes)


def test_a_discriminator_of_the_same_kernels_is_not_transposed():
    shapes = {}
    for at, (outputs, inputs) in ((0, (32, 3)), (2, (64, 32)), (5, (128, 64)), (8, (1, 128))):
        shapes[f"main.{at}.weight"] = (outputs, inputs, 4, 4)
    shapes |= {**norm("main.3", 64), **norm("main.6", 128)}
    found = described(shapes)
    assert {x.kind for x in found.layers} == {CONV}
    assert not any("transposed" in n for n in found.notes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("deconv1", TRANSPOSED), ("upconv", TRANSPOSED), ("up1", TRANSPOSED), ("conv1", CONV)],
)
def test_a_square_weight_is_transposed_by_name_alone(name, kind):
    shapes = {f"{name}.weight": (8, 8, 2, 2), f"{name}.bias": (8,)}
    assert layers_of(shapes)[name][0] is kind


@pytest.mark.parametrize("name", ["conv_up1", "upconv1", "up.conv"])
def test_a_square_weight_of_3_by_3_behind_an_upsampling_is_ordinary_and_told(name):
    found = described({f"{name}.weight": (8, 8, 3, 3), f"{name}.bias": (8,)})
    assert found.layers[0].kind is CONV
    assert any("--transposed" in note for note in found.notes)


def test_an_upsampling_that_is_learnt_has_a_filter_for_each_channel():
    shapes = {"in.weight": (8, 3, 7), "upsample.conv.weight": (8, 1, 4), "out.weight": (16, 8, 7)}
    assert layers_of(shapes)["upsample.conv"] == (TRANSPOSED, (8, 1, 4))


def test_convolutions_in_four_groups_are_not_transposed():
    shapes = {}
    for block in ("layer.0", "layer.1"):
        parts = {"conv1": (24, 48, 1, 1), "conv2.conv": (24, 6, 3, 3), "conv2.fc1": (8, 6, 1, 1)}
        parts |= {"conv2.fc2": (24, 2, 1, 1), "conv3": (48, 24, 1, 1)}
        shapes |= {f"{block}.{name}.weight": shape for name, shape in parts.items()}
    found = layers_of(shapes)
    assert found["layer.0.conv2.conv"] == found["layer.1.conv2.conv"] == (CONV, (24, 6, 3, 3))


@pytest.mark.parametrize(
    "model",
    [
        *("resnet18", "squeezenet1_0", "googlenet", "efficientnet_b0", "shufflenet_v2_x0_5"),
        "densenet121",
    ],
)
def test_published_networks_of_torch_have_no_transposed_layer(model):
    import torch
    import torchvision

    with torch.device("meta"):
        network = getattr(torchvision.models, model)(weights=None)
    shapes = {key: tuple(t.shape) for key, t in network.state_dict().items()}
    found = described(shapes)
    assert {x.kind for x in found.layers} <= {CONV, POINTWISE, LINEAR}
    wanted = {
        name: tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    }
    assert {x.name: x.weight.shape for x in found.layers} == wanted
    assert not any("transposed" in n or "axis" in n for n in found.notes)


def test_a_pattern_that_names_no_convolution_is_refused():
    with pytest.raises(UsageError, match="matches no convolution"):
        described({"fc.weight": (4, 3)}, transposed=re.compile("fc"))


def test_the_last_layer_of_gpt2_lies_otherwise_than_the_others():
    shapes = {"h.c_attn.weight": (8, 24), "h.c_attn.bias": (24,), "h.c_fc.weight": (8, 32)}
    shapes |= {"h.c_fc.bias": (32,), "h.c_proj.weight": (32, 8), "h.c_proj.bias": (8,)}
    found = layers_of(shapes | {"lm_head.weight": (100, 8), "h.more.weight": (8, 32)})
    assert found["lm_head"] == (LINEAR, (100, 8))
    assert found["h.c_proj"] == (LINEAR, (8, 32))
    assert found["h.more"] == (LINEAR, (32, 8))
