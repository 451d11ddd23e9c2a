"""Write small files of formats whose libraries are heavy, and the arrays that they should give.

    python make_fixtures.py flax haiku paddle FOLDER
    python make_fixtures.py caffe FOLDER

needs flax, dm-haiku and paddlepaddle; for Caffe mmdnn, which has the classes of Caffe's own schema,
and protobuf below 3.21. The files in this folder were written by it, with the versions that
`versions.txt` names; the tests read the files and install none of these.
"""

from __future__ import annotations

import pickle
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np


def flat(tree, path=()):
    """Leaves of a tree of dictionaries, by their paths joined with dots."""
    for key, value in tree.items():
        if isinstance(value, dict) or hasattr(value, "items"):
            yield from flat(value, (*path, key))
        else:
            yield ".".join((*path, key)), np.asarray(value)


def drawn(tree):
    """A tree of the same shapes, with numbers in place of zeros and ones."""
    import jax

    keys = iter(range(100))
    return jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(next(keys)), leaf.shape), tree
    )


def flax(folder):
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from flax import serialization

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
            x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2)(x))
            x = nn.ConvTranspose(5, (2, 2), strides=(2, 2))(x)
            return nn.Dense(3)(x.reshape((x.shape[0], -1)))

    variables = Net().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    variables = drawn(variables)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    state = {
        "step": 7,
        "params": variables["params"],
        "batch_stats": variables["batch_stats"],
        "opt_state": {"0": {"mu": variables["params"], "nu": variables["params"]}},
    }
    (folder / "flax.msgpack").write_bytes(serialization.to_bytes(variables))
    (folder / "flax-train-state.msgpack").write_bytes(
        serialization.msgpack_serialize(jax.tree.map(np.asarray, state))
    )
    (folder / "flax-bfloat16.msgpack").write_bytes(serialization.to_bytes(half))
    serialization.MAX_CHUNK_SIZE = 256
    (folder / "flax-chunked.msgpack").write_bytes(serialization.to_bytes(variables))
    (folder / "flax-jax.pkl").write_bytes(pickle.dumps(variables))
    (folder / "flax-bfloat16.pkl").write_bytes(pickle.dumps(half))
    numpy = jax.tree.map(np.asarray, variables["params"])
    (folder / "flax-frozen.ckpt").write_bytes(pickle.dumps(nn.FrozenDict(numpy), protocol=3))
    merged = {**dict(flat(variables["params"])), **dict(flat(variables["batch_stats"]))}
    yield "flax", merged
    yield (
        "flax-bfloat16",
        {name: value.astype(jnp.bfloat16).astype(np.float32) for name, value in merged.items()},
    )


def haiku(folder):
    import haiku as hk
    import jax
    import jax.numpy as jnp

    def net(x):
        x = hk.Conv2D(6, 3, name="first")(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=True))
        x = hk.Conv2DTranspose(5, 2, name="up")(x)
        return hk.Linear(3)(hk.Flatten()(x))

    net = hk.transform_with_state(net)
    params, state = net.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    params = drawn(params)
    (folder / "haiku.pkl").write_bytes(pickle.dumps({"params": params, "state": state}))
    (folder / "haiku-tuple.pkl").write_bytes(
        pickle.dumps(jax.tree.map(np.asarray, (params, state)))
    )
    seen = {"moving_mean": "mean_ema", "moving_variance": "var_ema"}
    norm = {"gamma": params["norm"]["scale"], "beta": params["norm"]["offset"]}
    norm |= {name: state[f"norm/~/{key}"]["average"] for name, key in seen.items()}
    plain = {name: value for name, value in flat(params) if not name.startswith("norm.")}
    yield "haiku", {**plain, **{f"norm.{name}": value.reshape(-1) for name, value in norm.items()}}


def paddle(folder):
    import paddle

    net = paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 6, 3),
        paddle.nn.BatchNorm2D(6),
        paddle.nn.ReLU(),
        paddle.nn.Conv2DTranspose(6, 5, 2),
        paddle.nn.Flatten(),
        paddle.nn.Linear(20, 3),
    )
    paddle.seed(0)
    for value in net.state_dict().values():
        value.set_value(paddle.randn(value.shape))
    paddle.save(net.state_dict(), str(folder / "net.pdparams"))
    paddle.save(
        {"model": net.state_dict(), "epoch": 1}, str(folder / "nested.pdparams"), protocol=2
    )
    yield "paddle", {name: value.numpy() for name, value in net.state_dict().items()}


def caffe(folder):
    from mmdnn.conversion.caffe import caffe_pb2 as schema

    rng = np.random.default_rng(0)
    arrays = {}

    def layer(net, name, kind, bottoms, tops, *blobs, legacy=False, **options):
        made = (net.layers if legacy else net.layer).add(name=name, bottom=bottoms, top=tops)
        made.type = getattr(schema.V1LayerParameter, kind) if legacy else kind
        for number, shape in enumerate(blobs):
            values = rng.normal(size=shape).astype(np.float32)
            if (kind, number) == ("BatchNorm", 1):
                values = abs(values)
            arrays[f"{net.name}.{name}.{number}"] = values
            blob = made.blobs.add(data=values.ravel())
            if legacy:
                four = (1,) * (4 - len(shape)) + shape
                blob.num, blob.channels, blob.height, blob.width = four
            else:
                blob.shape.dim.extend(shape)
        for option, fields in options.items():
            parameter = getattr(made, f"{option}_param")
            for field, value in fields.items():
                if isinstance(value, list):
                    getattr(parameter, field).extend(value)
                else:
                    setattr(parameter, field, value)
        return made

    net = schema.NetParameter(name="newest", input=["data"])
    net.input_shape.add(dim=[1, 3, 16, 16])
    layer(
        net,
        "conv1",
        "Convolution",
        ["data"],
        ["conv1"],
        (4, 3, 3, 3),
        convolution={"num_output": 4, "bias_term": False, "kernel_size": [3], "stride": [2]},
    )
    layer(net, "bn1", "BatchNorm", ["conv1"], ["conv1"], (4,), (4,), (1,), batch_norm={"eps": 1e-3})
    layer(net, "scale1", "Scale", ["conv1"], ["conv1"], (4,), (4,), scale={"bias_term": True})
    layer(net, "relu1", "ReLU", ["conv1"], ["conv1"])
    layer(net, "pool1", "Pooling", ["conv1"], ["pool1"], pooling={"kernel_size": 2, "stride": 2})
    layer(
        net,
        "left",
        "Convolution",
        ["pool1"],
        ["left"],
        (4, 2, 3, 3),
        (4,),
        convolution={"num_output": 4, "kernel_size": [3], "pad": [1], "group": 2},
    )
    layer(
        net,
        "right",
        "Convolution",
        ["pool1"],
        ["right"],
        (4, 4, 1, 1),
        (4,),
        convolution={"num_output": 4, "kernel_size": [1]},
    )
    layer(net, "leak", "ReLU", ["right"], ["right"], relu={"negative_slope": 0.1})
    layer(net, "sum", "Eltwise", ["left", "right"], ["sum"])
    layer(
        net,
        "up",
        "Deconvolution",
        ["sum"],
        ["up"],
        (4, 2, 2, 2),
        (2,),
        convolution={"num_output": 2, "kernel_size": [2], "stride": [2]},
    )
    layer(net, "table", "Embed", ["up"], ["table"], (5, 6))
    layer(
        net,
        "head",
        "InnerProduct",
        ["up"],
        ["head"],
        (3, 128),
        (3,),
        inner_product={"num_output": 3},
    )
    layer(
        net,
        "turned",
        "InnerProduct",
        ["head"],
        ["turned"],
        (3, 5),
        (5,),
        inner_product={"num_output": 5, "transpose": True},
    )
    (folder / "newest.caffemodel").write_bytes(net.SerializeToString())

    net = schema.NetParameter(name="shared", input=["data"])
    for name, bottom in (("first", "data"), ("again", "first")):
        made = layer(
            net,
            name,
            "Convolution",
            [bottom],
            [name],
            (3, 3, 3, 3),
            convolution={"num_output": 3, "bias_term": False, "pad": [1]},
        )
        made.param.add(name="weights")
    (folder / "shared.caffemodel").write_bytes(net.SerializeToString())

    net = schema.NetParameter(name="middle", input=["data"], input_dim=[1, 3, 8, 8])
    layer(
        net,
        "conv1",
        "CONVOLUTION",
        ["data"],
        ["conv1"],
        (4, 3, 3, 3),
        (4,),
        legacy=True,
        convolution={"num_output": 4, "kernel_size": [3]},
    )
    layer(net, "relu1", "RELU", ["conv1"], ["conv1"], legacy=True)
    layer(net, "pool1", "POOLING", ["conv1"], ["pool1"], legacy=True, pooling={"stride": 2})
    layer(net, "norm1", "LRN", ["pool1"], ["norm1"], legacy=True)
    layer(
        net,
        "conv2",
        "CONVOLUTION",
        ["norm1"],
        ["conv2"],
        (6, 2, 3, 3),
        (6,),
        legacy=True,
        convolution={"num_output": 6, "kernel_size": [3], "group": 2},
    )
    layer(net, "fc", "INNER_PRODUCT", ["conv2"], ["fc"], (2, 6), (2,), legacy=True)
    (folder / "middle.caffemodel").write_bytes(net.SerializeToString())

    net = schema.NetParameter(name="oldest", input=["data"])
    values = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    arrays["oldest.conv1.0"] = values
    made = net.layers.add(bottom=["data"], top=["conv1"])
    made.layer.name, made.layer.type, made.layer.group, made.layer.stride = "conv1", "conv", 1, 2
    blob = made.layer.blobs.add(data=values.ravel())
    blob.num, blob.channels, blob.height, blob.width = values.shape
    (folder / "oldest.caffemodel").write_bytes(net.SerializeToString())
    yield "caffe", arrays


MAKERS = {"caffe": caffe, "flax": flax, "haiku": haiku, "paddle": paddle}
LIBRARIES = {
    "caffe": ["mmdnn", "protobuf"],
    "flax": ["flax", "jax"],
    "haiku": ["dm-haiku", "jax"],
    "paddle": ["paddlepaddle"],
}


def main(folder, names):
    listed = folder / "versions.txt"
    versions = set(listed.read_text().splitlines() if listed.exists() else ())
    for name in names:
        for network, arrays in MAKERS[name](folder):
            np.savez_compressed(folder / f"{network}.expected.npz", **arrays)
        versions |= {f"{each} {version(each)}" for each in LIBRARIES[name]}
    listed.write_text("\n".join(sorted(versions)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[-1]), sys.argv[1:-1])
