"""PyTorch files are read as torch reads them, to the last bit, and nothing in them runs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from planescope.checkpoints.probe import probe
from planescope.checkpoints.torch import stream as torch_stream
from planescope.checkpoints.torch import tensors as torch_tensors
from planescope.checkpoints.torch import zip as torch_zip
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Kind, Place, StateDict

PARITY = Path(__file__).parents[1] / "parity"
FORMATS = (torch_zip, torch_stream)

# The writers under test warn of their own deprecation.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def read(path: Path, **options) -> StateDict:
    (reader,) = [each for each in FORMATS if each.recognises(probe(path))]
    return reader.read(path, **options)


@pytest.fixture(params=["zip", "stream"])
def save(request, tmp_path):
    """Write an object by torch, in one of its layouts."""

    def write(value: object, name: str = "net.pt") -> Path:
        path = tmp_path / name
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return write


def assert_same(state: StateDict, expected: dict[str, torch.Tensor]) -> None:
    """Same names in the same order, and the same types, shapes and bits."""
    assert list(state.tensors) == list(expected)
    for name, tensor in state.tensors.items():
        wanted = expected[name].detach()
        assert f"torch.{tensor.dtype}" == str(wanted.dtype), name
        assert tensor.shape == tuple(wanted.shape), name
        widened = tensor.dtype == "bfloat16" or tensor.dtype.startswith("float8")
        array = (wanted.float() if widened else wanted).contiguous().numpy()
        found = tensor.read()
        assert found.dtype == array.dtype, name
        assert found.shape == array.shape, name
        if tensor.dtype.startswith("float8"):  # the bits of a widened NaN are anybody's
            np.testing.assert_array_equal(found, array, strict=True)
        else:
            assert found.tobytes() == array.tobytes(), name


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Conv1d(6, 6, 5),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


PLACES = {
    "0": Place(kind=Kind.CONV, groups=2),
    "3": Place(kind=Kind.POINTWISE, groups=1),
    "4": Place(kind=Kind.TRANSPOSED, groups=2),
    "5": Place(kind=Kind.CONV, groups=1),
    "7": Place(kind=Kind.LINEAR),
}


# --- tensors -------------------------------------------------------------------------------------


def test_a_state_dict_is_read_as_torch_reads_it(save):
    network = small_network()
    state = read(save(network.state_dict()))
    assert_same(state, network.state_dict())
    assert (state.entry, state.in_order, state.places) == ("", True, {})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path, protocol):
    values = small_network().state_dict()
    for zipped in (True, False):
        torch.save(
            values,
            tmp_path / "net.pt",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        assert_same(read(tmp_path / "net.pt"), values)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
        *(torch.complex64, torch.complex128, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        # From torch 2.7 on.
        *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []),
    ],
    ids=str,
)
def test_every_element_type_is_read(save, dtype):
    # Bytes of all kinds; of booleans, only 0 and 1 are values.
    raw = torch.arange(240, dtype=torch.uint8)
    if dtype is torch.bool:
        raw %= 2
    values = {"some": raw.view(dtype), "part": raw.view(dtype)[2:7], "none": raw.view(dtype)[:0]}
    assert_same(read(save(values)), values)


def test_views_are_read_as_they_are(save):
    base = torch.arange(120.0)
    grid = base.view(2, 3, 4, 5)
    values = {
        "offset": base[7:19].view(3, 4),
        "transposed": grid.transpose(0, 3),
        "every-second": base[1::2],
        "channels-last": grid.clone().contiguous(memory_format=torch.channels_last),
        "expanded": torch.arange(3.0)[:, None].expand(3, 1000),
        "scalar": base[5],
        "empty": grid[:, :0],
        "empty-at-the-end": base[120:],
        "one-long": base[3:4].view(1, 1, 1),
        "tied": base[7:19].view(3, 4),
    }
    assert_same(read(save(values)), values)


def test_parameters_and_subclasses_are_tensors(save):
    weight = nn.Parameter(torch.randn(3, 2))
    weight.note = "kept as state"  # type: ignore[attr-defined]
    values = {
        "weight": weight,
        "buffer": nn.Buffer(torch.ones(2)),
        "subclass": torch.ones(2).as_subclass(Subclass),
    }
    assert_same(read(save(values)), values)


class Subclass(torch.Tensor):
    pass


def test_quantised_tensors_come_as_the_numbers_they_stand_for(save):
    values = torch.randn(4, 3, 5)
    by_tensor = torch.quantize_per_tensor(values, 0.03, 7, torch.quint8)
    by_channel = torch.quantize_per_channel(
        values, torch.rand(3, dtype=torch.float64) / 50, torch.tensor([0, 3, -2]), 1, torch.qint8
    )
    found = read(save({"by_tensor": by_tensor, "by_channel": by_channel}))
    assert_same(found, {"by_tensor": by_tensor.dequantize(), "by_channel": by_channel.dequantize()})


def test_no_storage_is_read_until_it_is_asked_for(tmp_path, monkeypatch):
    torch.save({"a.weight": torch.zeros(3), "b.weight": torch.ones(3)}, tmp_path / "net.pt")
    read_at = []
    monkeypatch.setattr(torch_tensors, "read_array", lambda *args, **_: read_at.append(args[3]))
    state = read(tmp_path / "net.pt")
    assert read_at == []
    state.tensors["b.weight"].read()
    assert read_at == [(3,)]


def test_the_stream_layout_gives_the_tensors_of_the_zip_layout():
    by_zip = read(PARITY / "lenet-epoch-12.tar")
    by_stream = read(PARITY / "lenet-epoch-12-stream.tar")
    expected = torch.load(PARITY / "lenet-epoch-12.tar")["model_state_dict"]
    assert_same(by_zip, expected)
    assert_same(by_stream, expected)
    assert by_zip.entry == by_stream.entry == "model_state_dict"


# --- where the state dict is ---------------------------------------------------------------------

STATE = {"conv.weight": torch.ones(2, 1, 3, 3), "conv.bias": torch.zeros(2)}
OTHER = {f"layer{n}.weight": torch.full((2, 2), float(n)) for n in range(5)}
MOMENTA = {
    "state": {n: {"exp_avg": torch.zeros(9), "exp_avg_sq": torch.ones(9)} for n in range(9)},
    "param_groups": [{"lr": 0.1, "params": list(range(9))}],
}


@pytest.mark.parametrize(
    ("saved", "entry"),
    [
        pytest.param(STATE, "", id="bare"),
        pytest.param(OrderedDict(STATE), "", id="ordered"),
        pytest.param({**STATE, "extra": {"weights": OTHER}}, "", id="bare-with-an-extra"),
        pytest.param(
            {"epoch": 12, "model_state_dict": STATE, "optimizer_state_dict": MOMENTA},
            "model_state_dict",
            id="the-authors-snapshots",
        ),
        pytest.param({"state_dict": STATE, "best": torch.ones(())}, "state_dict", id="timm"),
        pytest.param({"a": {"b": {"model": STATE, "more": OTHER}}}, "a.b.model", id="deep"),
        pytest.param({"ema": OTHER, "model": STATE}, "model", id="model-before-ema"),
        pytest.param({"callbacks": {"state_dict": OTHER}, "net": STATE}, "net", id="outermost"),
        pytest.param({"model": None, "ema": STATE}, "ema", id="the-likeliest-is-none"),
        pytest.param({"model": {"epoch": 3}, "mine": STATE}, "mine", id="the-likeliest-is-empty"),
        pytest.param(
            {"few": {"a.weight": torch.ones(1)}, "many": STATE}, "many", id="most-tensors"
        ),
        pytest.param({"my_optim": {"model": OTHER}, "mine": STATE}, "mine", id="not-optimizers"),
        pytest.param({"solver": MOMENTA, "mine": STATE}, "mine", id="an-optimizer-by-its-groups"),
    ],
)
def test_the_state_dict_is_found(save, saved, entry):
    state = read(save(saved))
    assert state.entry == entry
    assert_same(state, STATE) if not entry else None
    assert {name: tensor.shape for name, tensor in state.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in STATE.items()
    }


def test_dictionaries_that_hold_one_another_many_times_are_looked_at_once(save):
    nested = STATE
    for _ in range(4):  # 100^4 ways to the innermost one
        nested = {f"{way}": nested for way in range(100)}
    assert read(save(nested)).entry.split(".") == ["0"] * 4


def test_a_state_dict_of_python_2_is_found(tmp_path):
    """There an OrderedDict was written as a list of pairs, and text as bytes."""
    pairs = [["weight", torch.ones(2, 3)], ["bias", torch.zeros(2)]]
    path = tmp_path / "net.pt"
    torch.save(Made(OrderedDict, pairs), path, pickle_module=Reducing, pickle_protocol=2)
    assert_same(read(path), dict(pairs))


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        pytest.param(torch.ones(3), "holds a single tensor", id="tensor"),
        pytest.param([torch.ones(3)], "holds a list", id="list"),
        pytest.param((torch.ones(3), 1), "holds a tuple", id="tuple"),
        pytest.param(7, "holds a int", id="number"),
        pytest.param({"epoch": 1, "loss": 0.5}, "a dictionary of 'epoch', 'loss'", id="no-tensors"),
        pytest.param({1: torch.ones(3)}, "nothing that has a name", id="numbered"),
        pytest.param(MOMENTA, "a dictionary of 'state', 'param_groups'", id="optimizer"),
        pytest.param(nn.ReLU(), "an object of torch.nn.modules.activation.ReLU", id="no-weights"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(save, saved, sentence):
    with pytest.raises(CheckpointError, match=f"{sentence}.*save model.state_dict"):
        read(save(saved))


@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
def test_a_file_within_a_file_is_told(tmp_path, stream):
    path, script = tmp_path / "net.pt", io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3))), script)
    for held in (script, script.getvalue()):
        torch.save({"script": held}, path, _use_new_zipfile_serialization=not stream)
        with pytest.raises(CheckpointError, match="lies within it at 'script': write its bytes"):
            read(path)
    torch.save({"script": held, "model": STATE}, path, _use_new_zipfile_serialization=not stream)
    assert "lies within it at 'script'" in " ".join(read(path).notes)


def test_tensors_in_a_list_are_told_and_read_where_they_are_asked_for(save):
    path = save({"model": STATE, "ema": {"shadow": [torch.ones(4, 3), torch.ones(4)]}})
    assert "tensors at 'ema.shadow'" in " ".join(read(path).notes)
    assert {n: t.shape for n, t in read(path, entry="shadow").tensors.items()} == {
        "0": (4, 3),
        "1": (4,),
    }


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(nn.DataParallel, id="data-parallel"),
        pytest.param(torch.compile, id="compiled", marks=pytest.mark.slow),
        pytest.param(lambda net: nn.DataParallel(torch.compile(net)), id="parallel-of-compiled"),
        pytest.param(lambda net: torch.compile(nn.DataParallel(net)), id="compiled-parallel"),
        pytest.param(
            lambda net: nn.Sequential(*(torch.compile(part) for part in net)), id="parts-compiled"
        ),
    ],
)
def test_prefixes_of_wrappers_are_taken_off(save, wrap):
    network = small_network()
    assert_same(read(save(wrap(network).state_dict())), network.state_dict())


def test_a_prefix_stays_where_it_tells_names_apart(save):
    some = {"module.weight": torch.ones(1), "head.weight": torch.zeros(1)}
    assert_same(read(save(some)), some)
    both = {"_orig_mod.weight": torch.ones(1), "weight": torch.zeros(1)}
    assert_same(read(save(both)), both)


@pytest.mark.slow
def test_a_checkpoint_of_lightning_is_read(tmp_path):
    import pytorch_lightning

    class Lit(pytorch_lightning.LightningModule):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Conv2d(1, width, 3)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    module = Lit(4)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = read(tmp_path / "last.ckpt")
    assert state.entry == "state_dict"
    assert_same(state, module.state_dict())


# --- whole modules -------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A convolution by its attributes, of a class whose forward no file tells."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Conv2d(2, 4, 3, groups=2)
        self.__dict__.update(inner.__dict__)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small_network()
        self.scaled = Scaled()
        self.again = self.body[3]
        self.register_buffer("mean", torch.zeros(3))
        self.gain = nn.Parameter(torch.ones(()))
        self.note = "not a tensor"


def test_a_pickled_module_is_walked(save):
    network = Network()
    state = read(save(network))
    assert_same(state, network.state_dict())
    assert state.places == {
        **{f"body.{name}": place for name, place in PLACES.items()},
        "again": PLACES["3"],
    }
    assert list(state.reasons) == ["scaled"]
    assert "Scaled, which may use its weight in a way of its own" in state.reasons["scaled"]


@pytest.mark.parametrize("part", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore")
def test_the_class_of_a_layer_whose_weight_is_in_parts_is_told(save, part):
    net = nn.Sequential(part(nn.ConvTranspose2d(6, 6, 1, bias=False)), nn.ReLU())
    assert read(save(net)).places["0"].kind is Kind.TRANSPOSED


def test_modules_of_torchvision_are_walked(save):
    import torchvision

    features = torchvision.models.vgg.make_layers([4, "M", 6], batch_norm=True)
    with torch.device("meta"):  # its classifier alone has half a gigabyte
        vgg = torchvision.models.VGG(features, init_weights=False)
    vgg.classifier = nn.Sequential(nn.Linear(6 * 49, 3))
    for network in (vgg, torchvision.models.resnet18(num_classes=3)):
        state = read(save(network))
        assert_same(state, network.state_dict())
        assert {name for name, place in state.places.items() if place.kind is Kind.CONV} == {
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        }


def test_a_module_is_found_where_yolo_keeps_it(save):
    network = small_network()
    state = read(save({"epoch": 3, "model": None, "ema": network.half(), "optimizer": MOMENTA}))
    assert state.entry == "ema"
    assert_same(state, network.state_dict())
    assert state.places == PLACES


def test_a_module_in_a_parallel_wrapper_has_places_under_its_own_names(save):
    state = read(save(nn.DataParallel(small_network())))
    assert_same(state, small_network().state_dict())
    assert state.places == PLACES


def test_a_single_layer_has_no_name_of_its_own(save):
    state = read(save(nn.Conv2d(1, 2, 3)))
    assert list(state.tensors) == ["weight", "bias"]
    assert state.places == {"": Place(kind=Kind.CONV, groups=1)}


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_is_walked(tmp_path, how):
    network = nn.Sequential(OrderedDict(body=small_network()[:5], head=nn.Conv2d(6, 2, 3))).eval()
    if how == "script":
        module = torch.jit.script(network)
    else:
        module = torch.jit.trace(network, torch.zeros(1, 4, 9, 9))
    module.save(str(tmp_path / "net.pt"))
    state = read(tmp_path / "net.pt")
    values = network.state_dict()
    assert_same(state, {name: values[name] for name in state.tensors})
    assert state.tensors.keys() == values.keys()
    assert {name: place.kind for name, place in state.places.items()} == {
        "body.0": Kind.CONV,
        "body.3": Kind.POINTWISE,
        "body.4": Kind.TRANSPOSED,
        "head": Kind.CONV,
    }


# --- files that are made, not saved --------------------------------------------------------------


class Made:
    """Pickled as a call of `function`."""

    def __init__(self, function: object, *args: object, state: object = None) -> None:
        self.reduced = (function, args, state)


class Stored:
    """Pickled as the persistent id of a storage."""

    def __init__(self, *identity: object) -> None:
        self.identity = identity


class Reducing:
    """As torch wants a pickle module: `Made` and `Stored` become what they say."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return obj.identity if isinstance(obj, Stored) else None

        def reducer_override(self, obj: object) -> object:
            return obj.reduced if isinstance(obj, Made) else NotImplemented

    @classmethod
    def dumps(cls, value: object) -> bytes:
        file = io.BytesIO()
        cls.Pickler(file, 2).dump(value)
        return file.getvalue()


SIX = np.arange(6, dtype="<f4").tobytes()


def stored(kind=torch.FloatStorage, key="0", count=6, *view):
    return Stored("storage", kind, key, "cpu", count, *view)


def tensor(storage=None, offset=0, shape=(2, 3), strides=(3, 1)):
    args = (storage or stored(), offset, shape, strides, False, OrderedDict())
    return Made(torch._utils._rebuild_tensor_v2, *args)


def write_zip(path: Path, value: object, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", Reducing.dumps(value))
        archive.writestr("net/version", b"3\n")
        for name, raw in (storages or {"data/0": SIX}).items():
            archive.writestr(f"net/{name}", raw)
    return path


def write_stream(
    path: Path,
    value: object,
    storages: bytes = (6).to_bytes(8, "little") + SIX,
    *,
    keys: object = ("0",),
    protocol: int = 1001,
    little_endian: bool = True,
) -> Path:
    system = {"protocol_version": protocol, "little_endian": little_endian, "type_sizes": {}}
    pickled = (torch_stream._MAGIC, protocol, system, value, list(keys))
    path.write_bytes(b"".join(map(Reducing.dumps, pickled)) + storages)
    return path


def test_storages_of_a_big_endian_machine_are_turned_round(tmp_path):
    raw = {"data/0": np.arange(6, dtype=">f4").tobytes(), "byteorder": b"big"}
    path = write_zip(tmp_path / "net.pt", {"weight": tensor()}, raw)
    assert_same(read(path), torch.load(path))


def test_a_stream_is_little_endian_whoever_wrote_it(tmp_path):
    whole = stored(torch.FloatStorage, "0", 6, None)
    path = write_stream(tmp_path / "net.pt", {"weight": tensor(whole)}, little_endian=False)
    assert_same(read(path), torch.load(path))


def test_a_storage_of_a_stream_may_be_part_of_another(tmp_path):
    part = stored(torch.FloatStorage, "0", 6, ("1", 2, 4))
    path = write_stream(tmp_path / "net.pt", {"weight": tensor(part, 1, (3,), (1,))})
    assert_same(read(path), {"weight": torch.tensor([3.0, 4.0, 5.0])})
    assert_same(read(path), torch.load(path))


def test_parameters_of_torch_0_3_are_tensors(tmp_path):
    old = Made(torch._utils._rebuild_tensor, stored(), 0, (2, 3), (3, 1))
    values = {"weight": Made(nn.Parameter, old, state=(True, False, OrderedDict()))}
    path = write_stream(tmp_path / "net.pt", values)
    assert_same(read(path), {"weight": torch.arange(6.0).view(2, 3)})


# The stream layout meets a storage on its way through the file, before any tensor of it.
TOO_SHORT = "storage .* need|ends inside storage '0'"
UNKNOWN = "not described|storage 'net/data/9' is missing|no tensor tells the type of"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        pytest.param(tensor(offset=1), "ends at element 7 of a storage that has 6", id="offset"),
        pytest.param(tensor(shape=(3, 3)), "ends at element 9", id="shape"),
        pytest.param(tensor(strides=(4, 1)), "ends at element 7", id="strides"),
        pytest.param(tensor(offset=7, shape=(0,), strides=(1,)), "ends at", id="empty-outside"),
        pytest.param(tensor(offset=-1), "no size", id="negative-offset"),
        pytest.param(tensor(shape=(-2, -3)), "no size", id="negative-shape"),
        pytest.param(tensor(strides=(3, -1)), "no size", id="negative-stride"),
        pytest.param(tensor(shape=(2, True)), "no size", id="boolean-shape"),
        pytest.param(tensor(shape=(1 << 70, 0)), "no size", id="beyond-64-bits"),
        pytest.param(tensor(shape=(2,)), "1 dimensions and 2 strides", id="too-few-dimensions"),
        pytest.param(tensor(shape=(1,) * 65, strides=(1,) * 65), "65 dimensions", id="too-many"),
        pytest.param(
            tensor(shape=(1 << 30, 1 << 30), strides=(0, 0)), "repeats the 6", id="expansion-bomb"
        ),
        pytest.param(
            tensor(shape=(0, 1 << 62, 1 << 62), strides=(1, 1, 1)), "repeats", id="empty-bomb"
        ),
        pytest.param(tensor(stored(count=7)), TOO_SHORT, id="storage-too-short"),
        pytest.param(tensor(stored(torch.DoubleStorage)), TOO_SHORT, id="wider-type"),
        pytest.param(tensor(stored(count=1 << 62)), TOO_SHORT, id="storage-bomb"),
        pytest.param(tensor(stored(count=-6)), "not described", id="negative-count"),
        pytest.param(tensor(stored(key="9")), UNKNOWN, id="no-key"),
        pytest.param(tensor(stored(OrderedDict)), "unknown type 'OrderedDict'", id="unknown-type"),
        pytest.param(tensor(stored(key=7)), "not described", id="key-that-is-no-text"),
        pytest.param(tensor(Stored("storage")), "not described", id="short-identity"),
        pytest.param(tensor(Stored(None)), UNKNOWN, id="no-identity"),
        pytest.param(tensor(stored(torch.FloatStorage, "0", 6, 1, 2)), "view", id="odd-identity"),
        pytest.param(
            tensor(stored(torch.FloatStorage, "0", 6, ("1", 3, 4))), "view", id="view-outside"
        ),
        pytest.param(tensor(shape=[2, 3]), "not described", id="shape-that-is-a-list"),
        pytest.param(Made(torch._utils._rebuild_tensor_v2), UNKNOWN, id="no-arguments"),
        pytest.param(
            Made(torch._utils._rebuild_tensor_v3, *tensor().reduced[1], OrderedDict),
            "unknown type 'OrderedDict'",
            id="type-that-is-none",
        ),
        pytest.param(
            Made(torch._utils._rebuild_tensor_v3, *tensor().reduced[1], "float32"),
            "unknown type ''",
            id="type-that-is-text",
        ),
        pytest.param(
            Made(torch._utils._rebuild_tensor_v3, *tensor().reduced[1]),
            "unknown type ''",
            id="type-that-is-missing",
        ),
        pytest.param(
            Made(torch._utils._rebuild_qtensor, *tensor().reduced[1][:4], ("odd",)),
            "quantised in an unknown way",
            id="odd-quantisation",
        ),
        pytest.param(
            Made(
                torch._utils._rebuild_qtensor,
                *tensor().reduced[1][:4],
                (torch.per_channel_affine, tensor(), tensor(), 0),
            ),
            "scales of another shape",
            id="odd-scales",
        ),
    ],
)
@pytest.mark.parametrize("write", [write_zip, write_stream])
def test_a_tensor_outside_its_storage_is_refused(tmp_path, write, value, sentence):
    path = write(tmp_path / "net.pt", {"conv.weight": value})
    with pytest.raises(CheckpointError, match=f"net.pt.*({sentence})"):
        read(path)


def test_a_storage_of_bad_type_is_no_matter_where_no_tensor_is_read_from_it(tmp_path):
    values = {"model": {"weight": tensor()}, "optimizer": {"x": tensor(stored(key="gone"))}}
    assert list(read(write_zip(tmp_path / "net.pt", values)).tensors) == ["weight"]


@pytest.mark.parametrize("member", ["net/data.pkl", "net/data/0"])
def test_a_compressed_member_is_refused(tmp_path, member):
    torch.save({"weight": torch.zeros(999)}, tmp_path / "net.pt")
    with (
        zipfile.ZipFile(tmp_path / "net.pt") as old,
        zipfile.ZipFile(tmp_path / "deflated.pt", "w") as new,
    ):
        for name in old.namelist():
            packed = zipfile.ZIP_DEFLATED if name == member else zipfile.ZIP_STORED
            new.writestr(name, old.read(name), packed)
    with pytest.raises(CheckpointError, match=f"{member}'? is compressed, which torch never does"):
        read(tmp_path / "deflated.pt")


def test_two_pickles_in_one_archive_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("one/data.pkl", pickle.dumps({}))
        archive.writestr("two/data.pkl", pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"holds 2 files data\.pkl"):
        read(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"storages": b""}, "ends inside storage '0'", id="no-storages"),
        pytest.param({"storages": b"\x06" + b"\0" * 7}, "ends inside storage", id="no-bytes"),
        pytest.param({"storages": b"\x07" + b"\0" * 40}, "has 7 elements", id="other-count"),
        pytest.param({"storages": b"\xff" * 40}, "has 18446744073709551615", id="negative-count"),
        pytest.param({"keys": ()}, "storage '0' is missing", id="no-keys"),
        pytest.param({"keys": ("1",)}, "no tensor tells the type of", id="unknown-key"),
        pytest.param({"keys": (0,)}, "no tensor tells the type of", id="key-that-is-no-text"),
        pytest.param({"protocol": 1002}, "an unknown version", id="other-protocol"),
    ],
)
def test_a_stream_whose_parts_do_not_fit_is_refused(tmp_path, options, sentence):
    path = write_stream(tmp_path / "net.pt", {"weight": tensor()}, **options)
    with pytest.raises(CheckpointError, match=sentence):
        read(path)


def test_a_plain_pickle_is_no_torch_file(tmp_path):
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(small_network().state_dict()))
    assert not torch_stream.recognises(probe(tmp_path / "net.pkl"))
    with pytest.raises(CheckpointError, match=r"magic number is not torch's"):
        torch_stream.read(tmp_path / "net.pkl")


@pytest.mark.parametrize("head", [b"", b"\x80", b"\x80\x06", b"PK", b"{}", b"\x89HDF"])
def test_another_file_is_not_taken_for_torch(tmp_path, head):
    (tmp_path / "net.pt").write_bytes(head)
    assert not any(each.recognises(probe(tmp_path / "net.pt")) for each in FORMATS)


def test_an_empty_stream_is_refused(tmp_path):
    (tmp_path / "net.pt").touch()
    with pytest.raises(CheckpointError, match="cannot be read"):
        torch_stream.read(tmp_path / "net.pt")


# --- hostile and damaged files -------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_zip, write_stream])
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda bomb: bomb, id="top"),
        pytest.param(lambda bomb: {"weight": tensor(), "x": bomb}, id="beside-a-tensor"),
        pytest.param(lambda bomb: {"weight": Made(nn.Parameter, bomb)}, id="parameter"),
        pytest.param(lambda bomb: {"weight": tensor(bomb)}, id="storage"),
        pytest.param(lambda bomb: {"weight": tensor(Stored(bomb))}, id="persistent-id"),
        pytest.param(lambda bomb: {"weight": tensor(shape=(2, bomb))}, id="shape"),
        pytest.param(lambda bomb: {"weight": tensor(), "y": Stored("module", bomb)}, id="class"),
        pytest.param(lambda bomb: Made(nn.ReLU, state={"_modules": {"a": bomb}}), id="module"),
    ],
)
def test_no_payload_in_a_file_runs(tmp_path, write, wrap):
    canary = tmp_path / "canary"
    path = write(tmp_path / "net.pt", wrap(Made(os.mkdir, str(canary))))
    with contextlib.suppress(CheckpointError):
        for each in read(path).tensors.values():
            each.read()
    assert not canary.exists()


def module(**children):
    return Made(nn.Module, state={"_modules": children, "_parameters": {}, "_buffers": None})


def test_modules_that_hold_one_another_many_times_are_refused(tmp_path):
    """Sixty levels, each holding the one below twice, have 2^60 names."""
    tree = Made(nn.Module, state={"_modules": {}, "_parameters": {"w": tensor()}})
    for _ in range(60):
        tree = module(a=tree, b=tree)
    with pytest.raises(CheckpointError, match="names of all modules together are longer"):
        read(write_zip(tmp_path / "net.pt", tree))


def test_a_module_within_itself_ends(tmp_path):
    children: dict[str, object] = {}
    parts = {"weight": tensor()}
    tree = Made(nn.Module, state={"_modules": children, "_parameters": parts, "_buffers": {}})
    children["self"] = tree
    assert list(read(write_zip(tmp_path / "net.pt", tree)).tensors) == ["weight"]


def test_a_module_of_torchscript_may_lack_what_every_module_has(tmp_path):
    stream = b"\x80\x02c__torch__.net\nNet\n)\x81}X\x08\0\0\0_modules}sb."
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/data.pkl", stream)
    with pytest.raises(CheckpointError, match="a TorchScript module without tensors by name"):
        read(tmp_path / "net.pt")


@pytest.mark.parametrize("scale", [3e38, float("inf"), float("nan")])
def test_quantised_numbers_beyond_single_precision_are_not_finite(save, scale):
    scales = torch.tensor([scale, 1.0], dtype=torch.float64)
    values = torch._make_per_channel_quantized_tensor(
        torch.tensor([[100, 0], [1, 2]], dtype=torch.int8), scales, torch.zeros(2).long(), 0
    )
    found = read(save({"a": values})).tensors["a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.isfinite(found.read()[0, 0])
        assert found.read()[1].tolist() == [1.0, 2.0]


def test_a_tensor_wrapped_without_end_is_no_tensor(tmp_path):
    wrapped = tensor()
    for _ in range(100):
        wrapped = Made(nn.Parameter, wrapped)
    state = read(write_zip(tmp_path / "net.pt", {"weight": tensor(), "deep": wrapped}))
    assert list(state.tensors) == ["weight"]


def test_a_file_that_is_cut_short_is_refused(save, tmp_path):
    whole = save({"model": small_network(), "optimizer": MOMENTA}).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(whole), len(whole) // 100):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"is the download complete|cannot be read"):
            (torch_zip if whole[:2] == b"PK" else torch_stream).read(path)


def test_a_damaged_file_gives_tensors_or_our_error(save, tmp_path):
    whole = save({"model": small_network(), "state_dict": STATE}).read_bytes()
    path = tmp_path / "damaged.pt"
    rng = random.Random(0)  # noqa: S311
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            for each in (
                (torch_zip if whole[:2] == b"PK" else torch_stream).read(path).tensors.values()
            ):
                each.read()
