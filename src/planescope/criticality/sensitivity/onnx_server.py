"""The process in which an ONNX graph runs: given bounds, it answers requests on standard input.

Run as a script: it imports nothing of planescope. A request and an answer are the length of a JSON
header, the header, and the bytes of the arrays that it lists.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from typing import Any, BinaryIO

PLAIN = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
         "uint32", "uint64", "bool"}  # fmt: skip


def bound(memory: int) -> None:
    """Give this process bounds: of memory, and no file may be written."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS refuses a bound of addresses
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def receive(stream: BinaryIO) -> tuple[dict[str, Any], list[Any]]:
    """Read a header and its arrays; end where the stream does."""
    import numpy as np

    (length,) = struct.unpack("<Q", exactly(stream, 8))
    header = json.loads(exactly(stream, length))
    arrays = []
    for dtype, shape in header["arrays"]:
        kind = np.dtype(dtype)
        count = 1
        for extent in shape:
            count *= extent
        raw = exactly(stream, count * kind.itemsize)
        arrays.append(np.frombuffer(raw, dtype=kind).reshape(shape))
    return header, arrays


def exactly(stream: BinaryIO, size: int) -> bytearray:
    """Read so many bytes."""
    raw = bytearray(size)
    view, at = memoryview(raw), 0
    while at < size:
        taken = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not taken:
            raise SystemExit(0)
        at += taken
    return raw


def send(stream: BinaryIO, header: dict[str, Any], arrays: list[Any]) -> None:
    """Write a header and its arrays."""
    import numpy as np

    whole = [np.ascontiguousarray(array) for array in arrays]
    listed = {**header, "arrays": [[str(a.dtype), list(a.shape)] for a in whole]}
    text = json.dumps(listed).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    for array in whole:
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


class Server:
    """A graph, edited so that weights are fed, and the weights that it has by itself."""

    def __init__(self) -> None:
        self._model: Any = None
        self._session: Any = None
        self._wide: Any = None
        self._raw = b""
        self._threads = 1
        self._own: dict[str, Any] = {}
        self._external: dict[str, Any] = {}

    def open(self, header: dict[str, Any], arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Make the session of a model, whose weights enter as inputs."""
        import onnx

        model = onnx.ModelProto()
        self._raw = arrays[0].tobytes()
        model.ParseFromString(self._raw)
        external = dict(zip(header["external"], arrays[1:], strict=False))
        self._own = dict(zip(header["own"], arrays[1 + len(external) :], strict=True))
        self._threads = header["threads"]
        nodes = {name: node for node in model.graph.node for name in node.output if name}
        for output, number, name in header["places"]:
            nodes[output].input[number] = name
        for name, array in self._own.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(name, kind, list(array.shape))
            )
        used = set(texts(model.graph)) | {one.name for one in model.graph.output}
        unused = {one.name for one in model.graph.initializer} - used
        for field in (model.graph.initializer, model.graph.input):
            kept = [one for one in field if one.name not in unused]
            del field[:]
            field.extend(kept)
        stored = {one.name for one in model.graph.initializer if one.data_location == 1}
        if stored - external.keys() or has_external(model, stored):
            raise ValueError("a tensor within the graph wants its data from a file beside it")
        self._external = {name: external[name] for name in stored}
        self._model, self._session = model, self._made(model)
        return {"outputs": [one.name for one in self._session.get_outputs()]}, []

    def _made(self, model: Any) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        if self._external:
            # Handed over, so that onnxruntime opens no file.
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in self._external.values()]
            options.add_external_initializers(list(self._external), values)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, header: dict[str, Any], arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Run the graph on inputs, with some weights in place of its own.

        Of values that are asked for within it, `every` lists all that may be in later requests.
        """
        fed = dict(zip(header["names"], arrays, strict=True))
        if wanted := header.get("values"):
            given = [name for name in wanted if name in fed]
            inner = [name for name in wanted if name not in fed]
            if self._wide is None:
                self._wide = self._made(self._with_outputs(header["every"]))
            found = self._wide.run(inner, {**self._own, **fed}) if inner else []
            return {"outputs": [*inner, *given]}, [*found, *(fed[name] for name in given)]
        found = self._session.run(None, {**self._own, **fed})
        names = [one.name for one in self._session.get_outputs()]
        plain = [hasattr(array, "dtype") and str(array.dtype) in PLAIN for array in found]
        kept = [(n, a) for n, a, is_plain in zip(names, found, plain, strict=True) if is_plain]
        return {"outputs": [n for n, _ in kept]}, [a for _, a in kept]

    def sizes(self, header: dict[str, Any], arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Run the graph once, and give the shapes of some values within it."""
        fed = dict(zip(header["names"], arrays, strict=True))
        shapes = {name: list(array.shape) for name, array in fed.items()}
        wanted = [name for name in dict.fromkeys(header["values"]) if name not in shapes]
        found = self._made(self._with_outputs(wanted)).run(wanted, {**self._own, **fed})
        shapes |= {name: list(array.shape) for name, array in zip(wanted, found, strict=True)}
        return {"shapes": shapes}, []

    def _with_outputs(self, names: list[str]) -> Any:
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        there = {one.name for one in (*model.graph.output, *model.graph.input)}
        for name in dict.fromkeys(names):
            if name not in there:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        return model

    def write(self, header: dict[str, Any], arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Give the bytes of the model with other weights, each under the name of the one before.

        A weight that something else reads too, or that nodes made of a stored one, gets a name of
        its own. What lay in files beside the model is in it then.
        """
        import numpy as np
        import onnx

        model = onnx.ModelProto()
        model.ParseFromString(self._raw)
        graph = model.graph
        stored = {one.name: one for one in graph.initializer}
        for name, array in self._external.items():
            stored[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
        nodes = {name: node for node in graph.node for name in node.output if name}
        read = texts(graph) + [one.name for one in graph.output]
        taken = set(read) | set(stored) | nodes.keys()
        left = []
        for name, array in zip(header["names"], arrays, strict=True):
            places = [(nodes[o], n) for o, n, own in header["places"] if own == name]
            sources = {node.input[number] for node, number in places}
            source = min(sources)
            # As exporters hold the weights of a linear layer: turned, read by a Transpose alone.
            maker = nodes.get(source)
            if maker is not None and maker.op_type == "Transpose" and len(sources) == 1:
                behind = maker.input[0]
                if behind in stored and read.count(source) == len(places):
                    axes = [list(one.ints) for one in maker.attribute if one.name == "perm"]
                    order = axes[0] if axes else list(range(array.ndim))[::-1]
                    array, source = array.transpose(np.argsort(order)), behind
                    places, sources = [(maker, 0)], {behind}
            one = stored.get(source)
            new = onnx.numpy_helper.from_array(np.ascontiguousarray(array), source)
            is_alone = len(sources) == 1 and read.count(source) == len(places)
            kind = (new.data_type, list(new.dims))
            if one is not None and is_alone and (one.data_type, list(one.dims)) == kind:
                one.CopyFrom(new)
                continue
            number = 0
            while (own := f"{source}/new{number or ''}") in taken:
                number += 1
            taken.add(own)
            new.name = own
            graph.initializer.append(new)
            for node, at in places:
                left.append(node.input[at])
                node.input[at] = own
        _without(graph, left)
        return {}, [np.frombuffer(model.SerializeToString(), dtype=np.uint8)]


def _without(graph: Any, values: list[str]) -> None:
    """Take values out of a graph that nothing reads any more, and what they alone were made of."""
    while values:
        name = values.pop()
        if name in texts(graph) or any(one.name == name for one in graph.output):
            continue
        for field in (graph.initializer, graph.input):
            for one in [one for one in field if one.name == name]:
                field.remove(one)
        for node in [node for node in graph.node if name in node.output]:
            if len([one for one in node.output if one]) == 1:
                graph.node.remove(node)
                values += node.input


def texts(graph: Any) -> list[str]:
    """Return all names that nodes read, within loops and branches too."""
    found = []
    for node in graph.node:
        found += node.input
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found += [*texts(inner), *(one.name for one in inner.output)]
    return found


def has_external(message: Any, known: set[str]) -> bool:
    """Tell whether anything within a message wants data from a file, but for the known tensors."""
    from google.protobuf.message import Message  # type: ignore[import-untyped]

    left = [message]
    while left:
        one = left.pop()
        if one.DESCRIPTOR.name == "TensorProto" and one.data_location == 1:
            if one.name not in known:
                return True
            continue
        for _, value in one.ListFields():
            several = [value] if isinstance(value, Message) else value
            if not isinstance(several, (str, bytes, int, float)):
                left += [each for each in several if isinstance(each, Message)]
    return False


def main() -> None:
    """Answer requests until there are no more."""
    bound(int(sys.argv[1]))
    # What onnxruntime prints is none of the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    server = Server()
    while True:
        header, arrays = receive(sys.stdin.buffer)
        try:
            if header["do"] not in ("open", "run", "sizes", "write"):
                raise ValueError(header["do"])
            told, given = getattr(server, header["do"])(header, arrays)
        except MemoryError:
            told, given = {"error": "memory ran out", "memory": True}, []
        except Exception as exc:
            line = " ".join(str(exc).split())[:500]
            words = ("bad_alloc", "alloc", "memory")
            is_memory = any(word in line.lower() for word in words)
            told, given = {"error": line or type(exc).__name__, "memory": is_memory}, []
        send(answers, told, given)


if __name__ == "__main__":
    main()
