"""Which named tensors are layers, of what kind, with which bias and norm."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

import planescope as ps
from planescope.files.errors import CheckpointError, UsageError
from planescope.hyperplanes.layer import Input, Kind, Place, StateDict, Tensor
from planescope.networks.state.layers import describe, find_layers, natural
from planescope.networks.state.parametrisations import resolved

CONV, POINTWISE, TRANSPOSED, LINEAR = Kind


def tensor(shape, dtype="float32"):
    """A tensor that is never to be read."""
    return Tensor(shape, dtype, lambda: pytest.fail("a weight was read"))


def state(shapes, **options):
    """State dict of names and shapes; a (shape, dtype) pair where it is not float32."""
    tensors = {
        name: tensor(*shape) if shape and isinstance(shape[0], tuple) else tensor(shape)
        for name, shape in shapes.items()
    }
    return StateDict(tensors=tensors, **options)


def described(module, **options):
    """State dict of a torch module."""
    tensors = {
        name: Tensor(tuple(t.shape), str(t.dtype).removeprefix("torch."), t.detach().numpy)
        for name, t in module.state_dict().items()
    }
    return StateDict(tensors=tensors, **options)


# --- kinds


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        pytest.param("c.weight", (8, 3, 3), CONV, id="1-d"),
        pytest.param("c.weight", (8, 3, 3, 3), CONV, id="2-d"),
        pytest.param("c.weight", (8, 3, 3, 3, 3), CONV, id="3-d"),
        pytest.param("c.weight", (8, 1, 5, 5), CONV, id="depthwise"),
        pytest.param("c.weight", (8, 3, 1, 7), CONV, id="one-long-side"),
        pytest.param("c.weight", (1, 1, 1, 2), CONV, id="smallest"),
        pytest.param("c.weight", (8, 3, 1), POINTWISE, id="1-d-pointwise"),
        pytest.param("c.weight", (8, 3, 1, 1), POINTWISE, id="2-d-pointwise"),
        pytest.param("c.weight", (8, 3, 1, 1, 1), POINTWISE, id="3-d-pointwise"),
        pytest.param("c.weight", (8, 3), LINEAR, id="linear"),
        pytest.param("c.weight", ((8, 3, 3, 3), "bfloat16"), CONV, id="bfloat16"),
        pytest.param("c.weight", ((8, 3, 3, 3), "float8_e4m3fn"), CONV, id="float8"),
        pytest.param("c.kernel", (3, 3, 4, 8), CONV, id="kernel"),
        pytest.param("c.W", (8, 3), LINEAR, id="W"),
        pytest.param("patch_embed.proj.weight", (8, 3, 16, 16), CONV, id="patches"),
        pytest.param("weight", (8, 3, 3, 3), CONV, id="a-bare-layer"),
    ],
)
def test_the_kind_follows_from_the_shape(name, shape, kind):
    (layer,), skipped = find_layers(state({name: shape}))
    assert layer.kind is kind
    assert layer.name == name.removesuffix(".weight").removesuffix(".kernel").removesuffix(".W")
    assert not skipped


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        pytest.param("wte.weight", (9, 4), "an embedding", id="gpt-tokens"),
        pytest.param("model.embed_tokens.weight", (9, 4), "an embedding", id="llama-tokens"),
        pytest.param("pos_embedding.weight", (1, 9, 4), "an embedding", id="positions"),
        pytest.param("lstm.weight_ih_l0", (16, 4), "a recurrent weight", id="lstm"),
        pytest.param("lstm.weight_hh_l1_reverse", (16, 4), "a recurrent weight", id="backward"),
        pytest.param("cell.weight_ih", (16, 4), "a recurrent weight", id="cell"),
        pytest.param("attn.in_proj_weight", (12, 4), "three linear maps in one", id="attention"),
        pytest.param("c.weight", ((8, 3, 3, 3), "int8"), "stored as int8; save", id="int8"),
        pytest.param("c.weight", ((8, 3), "complex64"), "stored as complex64", id="complex"),
        pytest.param("c.weight", (2, 2, 2, 2, 2, 2), "a weight of 6 dimensions", id="rank-6"),
        pytest.param("norm.weight", (64, 8, 8), "a norm or a scale", id="layer-norm"),
        pytest.param("bilinear.weight", (5, 4, 3), "a bilinear map", id="bilinear"),
        pytest.param("mlp.experts.weight", (8, 4, 3), "several experts", id="experts"),
        pytest.param("conv.weight", (1, 9, 8, 3, 3), "a modulated weight", id="modulated"),
        pytest.param("q.qweight", ((4, 4), "int32"), "packed in a few bits", id="packed"),
        pytest.param("c.weight", (0, 3, 3, 3), "has no weights", id="no-filters"),
        pytest.param("c.weight", (8, 3, 0, 3), "has no weights", id="no-kernel"),
        pytest.param(
            "c.parametrizations.weight.original", (4, 4), "is computed", id="unknown-form"
        ),
    ],
)
def test_what_is_no_layer_is_listed_with_the_reason(name, shape, reason):
    layers, (skipped,) = find_layers(state({name: shape}))
    assert not layers
    assert reason in skipped.reason
    assert name.startswith(skipped.name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param("bn.weight", (8,), id="norm"),
        pytest.param("c.bias", (8,), id="bias"),
        pytest.param("scale.weight", (), id="scalar"),
        pytest.param("cls_token", (1, 1, 8), id="token"),
        pytest.param("relative_position_bias_table", (9, 3), id="table"),
        pytest.param("bn.num_batches_tracked", ((), "int64"), id="count"),
    ],
)
def test_other_tensors_are_passed_over(name, shape):
    assert find_layers(state({name: shape, "fc.weight": (2, 2)}))[1] == []


def test_a_parameter_beside_weights_is_told():
    _, (left_out,) = find_layers(state({"fc.weight": (2, 2), "text_projection": (4, 4)}))
    assert left_out.name == "text_projection"
    assert "a parameter that is no layer's weight" in left_out.reason


def test_a_projection_named_like_an_embedding_has_a_bias_and_is_a_layer():
    layers, skipped = find_layers(
        state(
            {"time_embed.0.weight": (8, 4), "time_embed.0.bias": (8,), "label_embed.weight": (9, 4)}
        )
    )
    assert [layer.name for layer in layers] == ["time_embed.0"]
    assert [x.name for x in skipped] == ["label_embed"]


def test_a_mapping_of_bare_arrays_is_all_weights_but_those_named_otherwise():
    shapes = {
        "conv1": (8, 3, 3, 3),
        "conv1_bias": (1, 8),
        "mask_head.1": (4, 8),
        "transposed": (4, 8),
        "pos_embed": (1, 9, 4),
        "cls_token": (1, 1, 4),
        "bn.running_mean": (1, 8),
        "lstm.weight_ih_l0": (8, 4),
        "steps": ((3, 3), "int64"),
    }
    layers, skipped = find_layers(state(shapes))
    assert [layer.name for layer in layers] == ["conv1", "mask_head.1", "transposed"]
    assert [x.name for x in skipped] == ["steps", "lstm.weight_ih_l0"]


def test_bare_arrays_among_weights_are_none():
    layers, _ = find_layers(state({"c.weight": (8, 3, 3, 3), "queries": (9, 4)}))
    assert [layer.name for layer in layers] == ["c"]


# --- biases, order, places


@pytest.mark.parametrize(
    ("shapes", "has_bias"),
    [
        pytest.param({"c.weight": (8, 3, 3), "c.bias": (8,)}, True, id="its-own"),
        pytest.param({"c.kernel": (8, 3, 3), "c.bias": (8,)}, True, id="kernel"),
        pytest.param({"c.w": (8, 3, 3), "c.b": (8,)}, True, id="w-b"),
        pytest.param({"weight": (8, 3, 3), "bias": (8,)}, True, id="a-bare-layer"),
        pytest.param({"c.weight": (8, 3, 3)}, False, id="none"),
        pytest.param({"c.weight": (8, 3, 3), "c.bias": (8, 1)}, True, id="of-more-axes"),
        pytest.param({"c/W": (8, 3, 3), "c/b": (8,)}, True, id="slashes"),
        pytest.param({"W1": (8, 3), "b1": (8,)}, True, id="numbered"),
        pytest.param({"c_weight": (8, 3, 3), "c_bias": (8,)}, True, id="underscores"),
        pytest.param({"c/kernel:0": (3, 3, 8), "c/bias:0": (8,)}, True, id="tensorflow"),
        pytest.param({"c.weight": (8, 3, 3), "d.bias": (8,)}, False, id="of-another-layer"),
    ],
)
def test_a_bias_is_paired_by_name_and_length(shapes, has_bias):
    (layer,), _ = find_layers(state(shapes))
    assert (layer.bias is not None) is has_bias


@pytest.mark.parametrize(
    ("bias", "reason"),
    [
        pytest.param((5,), "its bias of length 5 fits no axis", id="length"),
        pytest.param((8, 3, 3), "a norm or a scale", id="layer-norm"),
        pytest.param((8, 3), "its bias has the shape 8×3", id="ensemble"),
        pytest.param(((8,), "int32"), "its bias is stored as int32", id="quantised"),
    ],
)
def test_a_bias_that_does_not_fit_is_told(bias, reason):
    layers, ((left_out),) = find_layers(state({"c.weight": (8, 3, 3), "c.bias": bias}))
    assert not layers
    assert reason in left_out.reason


@pytest.mark.parametrize(
    ("in_order", "names"), [(True, ["f.10", "f.2", "a"]), (False, ["a", "f.2", "f.10"])]
)
def test_order_is_that_of_the_file_or_natural(in_order, names):
    shapes = {"f.10.weight": (8, 3), "f.2.weight": (8, 3), "a.weight": (8, 3)}
    layers, _ = find_layers(state(shapes, in_order=in_order))
    assert [layer.name for layer in layers] == names


def test_numbers_in_names_sort_as_numbers():
    names = ["b10.c2", "b10.c10", "b2", "b2.c", "b", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "b", "b2", "b2.c", "b10.c2", "b10.c10"]


def test_places_tell_what_shapes_cannot():
    place = Place(kind=TRANSPOSED, stage=2, input=Input.RELU, groups=2)
    places = {"b": Place(kind=LINEAR, stage=0), "a": place}
    shapes = {"a.weight": (4, 3, 2, 2), "a.bias": (6,), "b.weight": (8, 3)}
    layers, _ = find_layers(state(shapes, places=places))
    assert [layer.name for layer in layers] == ["b", "a"]  # in the order of the graph
    found = layers[1]
    assert (found.kind, found.stage, found.input) == (TRANSPOSED, 2, Input.RELU)
    assert (found.groups, found.filters, found.fan_in, found.input) == (2, 6, 8, Input.RELU)
    assert found.bias is not None


# --- transposed convolutions


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("module", "size", "groups"),
    [
        pytest.param(nn.ConvTranspose1d, (4, 6, 3), 1, id="1-d"),
        pytest.param(nn.ConvTranspose2d, (4, 6, 3), 1, id="2-d"),
        pytest.param(nn.ConvTranspose3d, (4, 6, 2), 1, id="3-d"),
        pytest.param(nn.ConvTranspose2d, (4, 6, 3), 2, id="two-groups"),
        pytest.param(nn.ConvTranspose2d, (4, 8, 3), 4, id="depthwise"),
    ],
)
def test_filters_of_a_transposed_convolution_are_its_outputs(module, size, groups, bias):
    torch.manual_seed(0)
    layer = module(*size, groups=groups, bias=bias)
    holder = nn.ModuleDict({"up": layer})
    place = {"up": Place(kind=TRANSPOSED, groups=groups)}
    pattern = re.compile("^up$")
    # The bias tells the groups; without one only a module or a graph does.
    known = [described(holder, places=place)] + [described(holder)] * (bias or groups == 1)
    for contents in known:
        (found,), _ = find_layers(contents, transposed=pattern)
        assert (found.kind, found.groups, found.filters) == (TRANSPOSED, groups, size[1])
        assert (found.bias is not None) is bias
        # Filter o is what torch keeps for output o, under the inputs of its own group.
        taps = torch.from_numpy(found.weight.read())
        for o in range(size[1]):
            group = o // (size[1] // groups)
            inputs = slice(group * size[0] // groups, (group + 1) * size[0] // groups)
            stored = layer.weight.detach()[inputs, o % (size[1] // groups)]
            assert torch.equal(taps[o], stored)


def test_a_pattern_that_names_no_convolution_is_refused():
    contents = state({"up.weight": (4, 3, 2, 2), "fc.weight": (4, 3)})
    assert find_layers(contents, transposed=re.compile("up"))[0][0].kind is TRANSPOSED
    for pattern in ("down", "fc"):
        with pytest.raises(UsageError, match=f"--transposed '{pattern}' matches no convolution"):
            find_layers(contents, transposed=re.compile(pattern))


def test_groups_that_do_not_divide_the_inputs_are_refused():
    places = {"a": Place(kind=TRANSPOSED, groups=3)}
    with pytest.raises(CheckpointError, match="4 inputs cannot be divided among 3 groups"):
        find_layers(state({"a.weight": (4, 2, 3, 3)}, places=places))


# --- norms


def norms_of(contents):
    return {x.name: x.norm.name for x in find_layers(contents)[0] if x.norm is not None}


def bn(name, width):
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in names}


def test_a_norm_has_its_four_tensors_and_is_said_to_be_assumed():
    (layer,), _ = find_layers(state({"conv.weight": (8, 3, 3, 3), **bn("bn", 8)}))
    assert layer.norm_assumed
    assert (layer.norm.name, layer.norm.eps) == ("bn", 1e-5)
    for part in (layer.norm.gamma, layer.norm.beta, layer.norm.mean, layer.norm.variance):
        assert part.shape == (8,)


@pytest.mark.parametrize(
    ("shapes", "gamma", "beta"),
    [
        pytest.param({"n.running_mean": (8,), "n.running_var": (8,)}, False, False, id="no-affine"),
        pytest.param(
            {"n.gamma": (8,), "n.beta": (8,), "n.moving_mean": (8,), "n.moving_variance": (8,)},
            True,
            True,
            id="keras",
        ),
    ],
)
def test_forms_of_a_norm(shapes, gamma, beta):
    (layer,), _ = find_layers(state({"c.weight": (8, 3, 3, 3), **shapes}))
    assert (layer.norm.gamma is not None, layer.norm.beta is not None) == (gamma, beta)


def test_a_norm_whose_parts_differ_in_length_is_told():
    found = describe(state({"c.weight": (8, 3, 3, 3), **bn("n", 8), "n.weight": (4,)}))
    assert found.layers[0].norm is None
    assert list(found.notes) == ["the batch norm n was not used: its parts have different lengths"]


def test_norms_without_a_layer_are_named():
    found = describe(state({"c.weight": (8, 3, 3, 3), **bn("a", 8), **bn("b", 9)}))
    assert list(found.notes) == [
        "batch norms that were paired with no layer: b (--norms LAYER=NORM pairs them)"
    ]


def test_a_graph_tells_the_norm_and_its_eps():
    places = {
        "a": Place(kind=CONV, stage=0, norm="n2", eps=0.5),
        "b": Place(kind=CONV, stage=0),
    }
    shapes = {"a.weight": (8, 3, 3), **bn("n1", 8), "b.weight": (8, 8, 3), **bn("n2", 8)}
    a, b = find_layers(state(shapes, places=places))[0]
    assert (a.norm.name, a.norm.eps, a.norm_assumed, b.norm) == ("n2", 0.5, False, None)


CONV_3 = (8, 8, 3, 3)


@pytest.mark.parametrize(
    ("shapes", "pairs"),
    [
        pytest.param(
            {"a.weight": CONV_3, **bn("x", 8), "b.weight": CONV_3, **bn("y", 8)},
            {"a": "x", "b": "y"},
            id="one-by-one",
        ),
        pytest.param({"a.weight": CONV_3, **bn("x", 4)}, {}, id="of-another-width"),
        pytest.param(
            {"a.weight": CONV_3, "b.weight": CONV_3, **bn("x", 8)}, {"b": "x"}, id="the-nearest"
        ),
        pytest.param(
            {"a.weight": CONV_3, **bn("x", 8), **bn("y", 8)}, {"a": "x"}, id="the-first-behind"
        ),
        pytest.param({**bn("x", 8), "a.weight": CONV_3}, {}, id="before"),
        pytest.param(
            {"c.weight": CONV_3, "d.weight": CONV_3, **bn("n1", 8), **bn("n2", 8)},
            {},
            id="all-convolutions-then-all-norms",
        ),
        pytest.param(
            {"c1.weight": CONV_3, "c2.weight": CONV_3, **bn("n1", 8), **bn("n2", 8)},
            {"c1": "n1", "c2": "n2"},
            id="numbers-tell",
        ),
        pytest.param({"f.0.weight": CONV_3, **bn("f.2", 8)}, {}, id="something-stands-between"),
        pytest.param({"a.conv.weight": CONV_3, **bn("b.norm", 8)}, {}, id="of-another-block"),
    ],
)
def test_a_norm_is_paired_by_order_and_width(shapes, pairs):
    assert norms_of(state(shapes)) == pairs


@pytest.mark.parametrize(
    ("shapes", "pairs"),
    [
        pytest.param({"conv1.weight": CONV_3, **bn("bn1", 8)}, {"conv1": "bn1"}, id="bn1"),
        pytest.param({"m.conv.weight": CONV_3, **bn("m.bn", 8)}, {"m.conv": "m.bn"}, id="bn"),
        pytest.param({"conv.weight": CONV_3, **bn("norm", 8)}, {"conv": "norm"}, id="norm"),
        pytest.param({"f.3.weight": CONV_3, **bn("f.4", 8)}, {"f.3": "f.4"}, id="next-index"),
        pytest.param({"stem.weight": CONV_3, **bn("stem_bn", 8)}, {"stem": "stem_bn"}, id="suffix"),
        pytest.param({"conv1.weight": CONV_3, **bn("bn2", 8)}, {}, id="of-another-number"),
        pytest.param({"conv1.weight": CONV_3, **bn("bn", 8)}, {}, id="of-no-number"),
        pytest.param({"a.conv.weight": CONV_3, **bn("b.bn", 8)}, {}, id="of-another-block"),
        pytest.param(
            {"conv1.weight": CONV_3, "fc1.weight": (8, 8), **bn("bn1", 8)}, {}, id="claimed-twice"
        ),
        pytest.param(
            # Behind or before? Before: the second block's norm is as wide as its input.
            {
                "a.conv1.weight": CONV_3,
                "b.conv1.weight": (16, 8, 3, 3),
                **bn("a.bn1", 8),
                **bn("b.bn1", 8),
            },
            {},
            id="pre-activation",
        ),
    ],
)
def test_a_norm_is_paired_by_name_where_the_order_is_lost(shapes, pairs):
    assert norms_of(state(shapes, in_order=False)) == pairs


def published(name):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None)
    return {key: tuple(t.shape) for key, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "in_order", "by_name", "some"),
    [
        pytest.param(
            "resnet18",
            20,
            20,
            {"layer2.0.conv1": "layer2.0.bn1", "layer2.0.downsample.0": "layer2.0.downsample.1"},
            id="resnet18",
        ),
        pytest.param(
            "mobilenet_v2",
            52,
            52,
            {
                "features.2.conv.0.0": "features.2.conv.0.1",
                "features.2.conv.2": "features.2.conv.3",
            },
            id="mobilenet_v2",
        ),
        # Norms stand before most convolutions: conv1 and norm2 belong together, by their widths.
        pytest.param(
            "densenet121",
            59,
            59,
            {
                "features.conv0": "features.norm0",
                "features.denseblock1.denselayer2.conv1": "features.denseblock1.denselayer2.norm2",
            },
            id="densenet121",
        ),
        pytest.param("shufflenet_v2_x0_5", 56, 56, {}, id="shufflenet"),
        pytest.param("squeezenet1_0", 0, 0, {}, id="without-norms"),
    ],
)
def test_norms_of_published_networks(name, in_order, by_name, some):
    shapes = published(name)
    ordered = norms_of(state(shapes))
    names_alone = norms_of(state(dict(sorted(shapes.items())), in_order=False))
    assert len(ordered) == in_order
    assert some.items() <= ordered.items()
    assert len(names_alone) == by_name
    assert names_alone.items() <= ordered.items()  # what is paired is right


# --- weights in parts


def small(kind, *size):
    torch.manual_seed(0)
    return kind(*size)


def pruned(module):
    return prune.l1_unstructured(module, "weight", amount=0.4)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(nn.utils.weight_norm(small(nn.Conv2d, 3, 5, 3)), id="weight-norm-old"),
        pytest.param(parametrizations.weight_norm(small(nn.Conv2d, 3, 5, 3)), id="weight-norm"),
        pytest.param(parametrizations.weight_norm(small(nn.Linear, 5, 1)), id="one-filter"),
        pytest.param(
            parametrizations.weight_norm(small(nn.Linear, 5, 1), dim=1), id="one-filter-by-inputs"
        ),
        pytest.param(parametrizations.weight_norm(small(nn.Linear, 5, 4), dim=1), id="by-inputs"),
        pytest.param(parametrizations.weight_norm(small(nn.Linear, 5, 4), dim=None), id="whole"),
        pytest.param(nn.utils.weight_norm(small(nn.Linear, 5, 4), dim=None), id="whole-old"),
        pytest.param(nn.utils.spectral_norm(small(nn.Conv2d, 3, 5, 3)), id="spectral-norm-old"),
        pytest.param(parametrizations.spectral_norm(small(nn.Conv2d, 3, 5, 3)), id="spectral-norm"),
        pytest.param(
            parametrizations.spectral_norm(small(nn.ConvTranspose2d, 3, 5, 3)),
            id="spectral-transposed",
        ),
        pytest.param(nn.utils.spectral_norm(small(nn.Linear, 4, 4)), id="spectral-square"),
        pytest.param(pruned(small(nn.Conv2d, 3, 5, 3)), id="pruned"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "block.0."])
def test_a_weight_in_parts_is_the_one_that_torch_computes(module, prefix):
    module.eval()
    with torch.no_grad():
        module(
            torch.ones(1, 3, 8, 8) if "Conv" in str(module) else torch.ones(1, module.in_features)
        )
        wanted = module.weight.numpy()
    contents = described(module)
    contents = StateDict(tensors={prefix + name: t for name, t in contents.tensors.items()})
    (layer,), skipped = find_layers(contents)
    assert layer.name == (prefix.removesuffix(".") or "weight")
    assert not skipped
    if isinstance(module, nn.ConvTranspose2d):  # whose bias tells the axis of its filters
        wanted = wanted.swapaxes(0, 1)
    assert layer.weight.shape == wanted.shape
    np.testing.assert_allclose(layer.weight.read(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("part", [nn.utils.spectral_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_of_a_square_kernel_the_greater_sigma_tells_the_axis(kind, part):
    """Of the other axis sigma is near 0, and below it for half of all: it turns every filter."""
    for seed in range(10):
        torch.manual_seed(seed)
        module = part(kind(6, 6, 3))
        for _ in range(5):  # of training, which estimates the singular vectors
            module(torch.ones(1, 6, 8, 8))
        module.eval()(torch.ones(1, 6, 8, 8))
        found = resolved(described(module)).tensors["weight"].read()
        np.testing.assert_allclose(found, module.weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_sigma_of_a_matrix_with_its_filters_last_is_that_of_the_other_axis():
    weight = np.arange(1, 25, dtype="f4").reshape(3, 8)
    u, v = np.full(8, 8**-0.5, "f4"), np.full(3, 3**-0.5, "f4")
    parts = {"weight_orig": weight, "weight_u": u, "weight_v": v}
    tensors = {f"c.{n}": Tensor(x.shape, "float32", lambda x=x: x) for n, x in parts.items()}
    found = resolved(StateDict(tensors=tensors)).tensors["c.weight"].read()
    np.testing.assert_allclose(found, weight / (u @ weight.T @ v), rtol=1e-6)


def test_parts_stay_unread_until_the_weight_is():
    parts = {"c.weight_v": (8, 3, 3), "c.weight_g": (8, 1, 1), "c.bias": (8,)}
    (layer,), _ = find_layers(state(parts))
    assert layer.weight.shape == (8, 3, 3)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"weight_v": (8, 3, 3), "weight_g": (4, 1, 1)}, id="weight-norm"),
        pytest.param({"weight_v": (8, 3, 3), "weight_g": (8,)}, id="rank"),
        pytest.param({"weight_orig": (8, 3), "weight_u": (7,), "weight_v": (3,)}, id="spectral"),
        pytest.param({"weight_orig": (8, 3), "weight_mask": (3, 8)}, id="mask"),
        pytest.param({"weight_orig": (8, 3)}, id="mask-missing"),
    ],
)
def test_parts_that_do_not_fit_make_no_weight(parts):
    shapes = {f"c.{name}": shape for name, shape in parts.items()}
    layers, _ = find_layers(state({**shapes, "fc.weight": (2, 2)}))
    assert [layer.name for layer in layers] == ["fc"]


def test_a_bias_without_values_is_no_bias_of_one_filter():
    rng = np.random.default_rng(0)
    state = {"a.weight": rng.normal(size=(1, 8, 3, 3)), "a.bias": np.zeros(0)}
    state |= {"b.weight": rng.normal(size=(8, 4, 3, 3)), "b.bias": np.zeros(8)}
    measured = ps.measure(state)
    assert [layer.name for layer in measured.layers] == ["b"]
    (left,) = measured.skipped
    assert left.name == "a"
    assert "its bias of length 0 fits no axis" in left.reason


def test_a_norm_behind_a_block_of_a_sequence_is_paired_with_the_last_layer_in_it(tmp_path):
    """As Xception's separable convolutions; in whatever order the file has its tensors."""

    def block(name, inputs, outputs):
        norm = {f"{name}.1.{p}": np.ones(outputs, "f4") for p in ("running_mean", "running_var")}
        depthwise = {f"{name}.0.conv1.weight": np.ones((inputs, 1, 3, 3), "f4")}
        return depthwise | {f"{name}.0.pointwise.weight": np.ones((outputs, inputs, 1, 1))} | norm

    whole = block("a", 8, 16) | block("b", 16, 16)
    for arrays in (whole, dict(sorted(whole.items()))):
        found = {x.name: x.norm for x in ps.measure(arrays, kinds="all").layers}
        assert found["a.0.pointwise"] == "a.1"
        assert found["b.0.pointwise"] == "b.1"
        assert found["a.0.conv1"] is found["b.0.conv1"] is None
    # Of one width throughout, either layer may stand before the norm.
    assert {x.norm for x in ps.measure(dict(sorted(block("b", 8, 8).items()))).layers} == {None}


def test_dense_layers_that_fit_one_another_the_other_way_are_told():
    arrays = {"a.weight": np.ones((64, 10), "f4"), "b.weight": np.ones((10, 4), "f4")}
    assert "as many outputs" in " ".join(ps.measure(arrays, kinds="all").notes)
    turned = {name: array.T for name, array in arrays.items()}
    assert ps.measure(turned, kinds="all").notes == ()


def test_vectors_that_may_be_biases_are_told():
    weights = [torch.randn(8, 3, 3, 3), torch.randn(6, 8, 3, 3)]
    apart = nn.ParameterDict({f"w{i}": w for i, w in enumerate(weights)})
    lists = {
        "bs": {f"ws.{i}": w for i, w in enumerate(weights)} | {"bs.0": weights[0][:, 0, 0, 0]},
        "vars": {"vars.0": weights[0], "vars.1": torch.ones(8), "vars.2": weights[1]},
        "none": dict(apart),
    }
    told = {
        name: [note for note in ps.measure(arrays).notes if "may be biases" in note]
        for name, arrays in lists.items()
    }
    assert [note.rpartition(": ")[2] for name in told for note in told[name]] == ["bs.0", "vars.1"]


def noted(module):
    found = ps.measure(module.state_dict(), kinds="all")
    return any("several linear ones in one" in note for note in found.notes)


def test_what_may_be_a_bilinear_map_is_noted():
    parts = {"a": nn.Linear(12, 9), "merge": nn.Bilinear(9, 9, 6), "out": nn.Linear(6, 2)}
    assert noted(nn.ModuleDict(parts))
    assert noted(nn.ModuleDict({"form": nn.Bilinear(5, 7, 4)}))
    parts = {"a": nn.Linear(4, 5), "b": nn.Linear(4, 3), "merge": nn.Bilinear(5, 3, 6)}
    assert noted(nn.ModuleDict(parts))
    assert noted(nn.ModuleDict({"one": nn.Bilinear(5, 9, 7), "two": nn.Bilinear(7, 9, 5)}))


@pytest.mark.parametrize("names", [("0", "2", "4"), ("conv1", "conv2", "fc"), ("a", "b", "c")])
def test_an_ordinary_network_of_one_dimension_has_no_note(names):
    parts = (nn.Conv1d(5, 8, 7), nn.Conv1d(8, 16, 3), nn.Linear(16, 7))
    assert not noted(nn.ModuleDict(dict(zip(names, parts, strict=True))))


# --- what a user says that the file tells itself


def plain_and_normed():
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
    )


def test_an_epsilon_that_no_norm_takes_is_told():
    plain, normed = plain_and_normed()
    for source, is_used in ((plain.state_dict(), False), (normed.state_dict(), True)):
        notes = ps.measure(source, eps=0.25).notes
        assert any(note.startswith("--eps was not used") for note in notes) is not is_used
    assert any(note.startswith("--eps was not used") for note in ps.measure(normed, eps=0.25).notes)


def test_a_layout_of_no_layer_is_refused_and_one_that_is_known_is_told():
    _, normed = plain_and_normed()
    for source in (normed, normed.state_dict()):
        with pytest.raises(UsageError, match="--layout head=filters-last: matches no layer"):
            ps.measure(source, layout="head=filters-last")
    told = "--layout was not used: how the weights here lie is known"
    assert told in ps.measure(normed, layout="filters-last").notes
    assert told not in ps.measure(normed.state_dict(), layout="filters-first").notes


@pytest.mark.parametrize("file", ["residual.keras", "residual-weights.h5"])
def test_hints_on_a_file_that_is_no_state_dict_are_told(file):
    path = Path(__file__).parents[1] / "keras" / file
    hints = {"eps": 0.5, "norms": ["a=b"], "layout": "filters-last", "transposed": "."}
    (note,) = (n for n in ps.measure(path, **hints).notes if "not used" in n)
    assert note.startswith("--layout, --transposed, --norms, --eps were not used")
    (alone,) = (n for n in ps.measure(path, eps=0.5).notes if "not used" in n)
    assert alone.startswith("--eps was not used: of a keras source")


def test_a_batch_norm_of_complex_numbers_is_named_and_not_used():
    norm = {name: np.ones(4) for name in ("running_mean", "running_var", "weight", "bias")}
    norm["bias"] = norm["bias"] * 1j
    found = ps.measure(
        {"c.weight": np.ones((4, 3, 3, 3)), **{f"n.{k}": v for k, v in norm.items()}}
    )
    assert list(found.notes) == ["the batch norm n was not used: its parts are complex numbers"]
