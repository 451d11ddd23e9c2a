"""Graph of an ONNX model, flat: bodies of loops and branches and functions stand where they run.

Names are told apart by the scope in which they are defined, so that a body sees what stands around
it, and a function what it is called with.
https://onnx.ai/onnx/repo-docs/IR.html
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from planescope.checkpoints.onnx.nodes import Name, Node, node_at, qualified
from planescope.checkpoints.protobuf import Span, WireFile
from planescope.files.errors import CheckpointError

_MAX_DEPTH = 16  # of loops, branches and functions within one another
# A function that calls another twice, which calls another twice, doubles each time.
MAX_NODES = 1 << 19
_MAX_SILENT = 16  # operators in a row that change nothing

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike")

_BODIES = ("If", "Loop", "Scan", "SequenceMap")

# Once a network is trained these give what they get.
SILENT = frozenset(("Cast", "CastLike", "Dropout", "Identity", "com.microsoft.BitmaskDropout"))


# These look at no value: what they give is the same for every input of that shape.
_SHAPES = ("Shape", "Size")


def values_of(node: Node) -> tuple[Name | None, ...]:
    """Return the inputs of which a node takes the values, not the shape or the type alone."""
    if node.op in _SHAPES:
        return ()
    return node.inputs[:1] if node.op == "CastLike" else node.inputs


@dataclass(eq=False)
class _Scope:
    """The names that a graph or function defines, and those it sees of the graphs around it."""

    defined: dict[str, Name]
    parent: _Scope | None = None

    def find(self, text: str) -> Name | None:
        """Return the value that a name stands for.

        One that is defined nowhere is a value of its own.
        """
        if not text:
            return None
        scope: _Scope | None = self
        while scope is not None:
            if text in scope.defined:
                return scope.defined[text]
            scope = scope.parent
        return self.defined.setdefault(text, Name(text, -1))


@dataclass(eq=False)
class _Parts:
    """A GraphProto or FunctionProto, read but for what its nodes hold."""

    nodes: list[Node] = field(default_factory=list)
    stored: dict[str, Span] = field(default_factory=dict)
    sparse: dict[str, Span] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    defaults: dict[str, Span] = field(default_factory=dict)  # of a function's attributes
    name: str = ""
    domain: str = ""
    overload: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Return the name by which a node calls the function."""
        return qualified(self.domain, self.name), self.overload


class Graph:
    """The nodes of a model in the order in which they run, and who makes and reads each value.

    Attributes
    ----------
    nodes : list of Node
        A loop or branch follows its bodies, and reads what comes out of them.
    fed : dict of Name to bool
        What comes from outside: True for inputs of the network, False for what a loop carries.
    stored, sparse : dict of Name to (int, int)
        Where the tensors of the file lie, by the values that they are.
    outputs : set of Name
        Of the network.
    dynamic : set of Name
        What depends on the network's input, on chance, or on what is nowhere.
    """

    def __init__(self, wire: WireFile, graph: list[Span], functions: list[Span]) -> None:
        self.wire = wire
        self.nodes: list[Node] = []
        self.fed: dict[Name, bool] = {}
        self.stored: dict[Name, Span] = {}
        self.sparse: dict[Name, Span] = {}
        self.makers: dict[Name, Node] = {}
        self.users: defaultdict[Name, list[Node]] = defaultdict(list)
        read = (self._function(span) for span in functions)
        self._functions = {parts.key: parts for parts in read}
        self._scopes = self._seen = 0
        parts = self._graph(graph)
        scope = self._opened(parts, None)
        # Up to version 3 all stored tensors are listed as inputs too.
        self.fed |= {scope.defined[name]: True for name in parts.inputs if name not in parts.stored}
        self._flatten(parts, scope, 0)
        found = (scope.find(name) for name in parts.outputs)
        self.outputs = {name for name in found if name is not None}
        self.dynamic = self._dynamic()

    def _dynamic(self) -> set[Name]:
        """Find what is not stored, and not computed from what is stored alone."""
        known = self.stored.keys() | self.sparse.keys()
        dynamic: set[Name] = set(self.fed)
        for node in self.nodes:
            # A constant that takes a value's type is a constant still.
            inputs = node.inputs[:1] if node.op == "CastLike" else node.inputs
            given = [name for name in inputs if name]
            is_known = node.op == "Constant" or (bool(given) and known.issuperset(given))
            names = (name for name in node.outputs if name)
            if is_known and node.op not in _RANDOM:
                known.update(names)
            else:
                dynamic.update(names)
                dynamic.update(name for name in given if name not in known)
        return dynamic

    def acting(self) -> set[Node]:
        """Find the nodes of which something comes out of the network."""
        found: set[Node] = set()
        left = list(self.outputs)
        while left:
            node = self.makers.get(left.pop())
            if node is not None and node not in found:
                found.add(node)
                left += [name for name in node.inputs if name is not None]
        return found

    def unread(self) -> list[Name]:
        """List the stored tensors that no node reads and that are no output."""
        return [n for n in self.stored if not self.users.get(n) and n not in self.outputs]

    def only_user(self, value: Name) -> Node | None:
        """Find the node that alone reads a value."""
        for _ in range(_MAX_SILENT):
            users = [node for node in self.users.get(value, ()) if value in values_of(node)]
            if len(users) != 1 or value in self.outputs:
                return None
            if users[0].op not in SILENT or users[0].inputs[0] != value:
                return users[0]
            value = users[0].output
        return None

    def _opened(self, parts: _Parts, parent: _Scope | None) -> _Scope:
        """Open the scope of a graph: what it stores and computes is its own."""
        self._scopes += 1
        made = (name for node in parts.nodes for name in node.output_texts)
        texts = [*parts.inputs, *parts.stored, *parts.sparse, *filter(None, made)]
        scope = _Scope({text: Name(text, self._scopes) for text in texts}, parent)
        self.stored |= {scope.defined[name]: span for name, span in parts.stored.items()}
        self.sparse |= {scope.defined[name]: span for name, span in parts.sparse.items()}
        return scope

    def _flatten(self, parts: _Parts, scope: _Scope, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise CheckpointError(
                f"{self.wire.path}: loops, branches and functions lie {_MAX_DEPTH} deep; refused"
            )
        for node in parts.nodes:
            self._seen += 1
            if self._seen > MAX_NODES:
                raise CheckpointError(
                    f"{self.wire.path}: more than {MAX_NODES} operators, beyond any real model"
                )
            inputs = tuple(scope.find(text) for text in node.input_texts)
            outputs = tuple(scope.find(text) for text in node.output_texts)
            node = replace(node, inputs=inputs, outputs=outputs)
            if not any(outputs):
                continue
            if (function := self._functions.get((node.op, node.overload))) is not None:
                self._call(function, node, depth + 1)
            elif node.op in _BODIES or ("." in node.op and node.graphs()):  # a search holds one
                self._add(self._with_bodies(node, scope, depth + 1))
            else:
                self._add(node)

    def _with_bodies(self, node: Node, scope: _Scope, depth: int) -> Node:
        """Put the bodies of a loop or branch before it; it reads what they give."""
        # The input of a branch is its condition: of no account for what comes out.
        inputs = () if node.op == "If" else node.inputs
        for span in node.graphs():
            body = self._graph([span])
            if node.given:
                body.nodes = [replace(inner, given=node.given) for inner in body.nodes]
            within = self._opened(body, scope)
            # What feeds a body is known to its operator alone.
            self.fed |= {within.defined[name]: False for name in body.inputs}
            self._flatten(body, within, depth)
            inputs += tuple(within.find(name) for name in body.outputs)
        return replace(node, inputs=inputs)

    def _call(self, function: _Parts, call: Node, depth: int) -> None:
        """Put the nodes of a function in the place of the node that calls it."""
        scope = self._opened(replace(function, inputs=[]), None)
        given = dict(zip(function.inputs, call.inputs, strict=False))
        scope.defined |= {text: name for text, name in given.items() if name is not None}
        wanted = dict(zip(function.outputs, call.outputs, strict=False))
        scope.defined |= {
            text: name
            for text, name in wanted.items()
            if name is not None and text not in function.inputs
        }
        attributes = function.defaults | call.spans()
        nodes = [
            replace(node, name=f"{call.name}/{node.name}", given=attributes)
            for node in function.nodes
        ]
        self._flatten(replace(function, nodes=nodes), scope, depth)
        for text in function.inputs:  # what it gives back as it was
            if (name := wanted.get(text)) is not None:
                source = scope.find(text)
                self._add(replace(call, op="Identity", inputs=(source,), outputs=(name,)))

    def _add(self, node: Node) -> None:
        self.nodes.append(node)
        for name in filter(None, node.outputs):
            self.makers.setdefault(name, node)
        for name in filter(None, dict.fromkeys(node.inputs)):
            self.users[name].append(node)

    def _graph(self, spans: list[Span]) -> _Parts:
        """Read a GraphProto, which may be written in parts."""
        parts = _Parts()
        for part in (part for span in spans for part in self.wire.fields(span)):
            match part.number:
                case 1:
                    parts.nodes.append(node_at(self.wire, part.span))
                case 5:
                    parts.stored[self._text(part.span, 8)] = part.span
                case 11:
                    parts.inputs.append(self._text(part.span, 1))
                case 12:
                    parts.outputs.append(self._text(part.span, 1))
                case 15:
                    if values := self.wire.find(part.span, 1):
                        parts.sparse[self._text(values.span, 8)] = part.span
        return parts

    def _function(self, span: Span) -> _Parts:
        parts = _Parts()
        for part in self.wire.fields(span):
            match part.number:
                case 1:
                    parts.name = self.wire.text(part)
                case 4:
                    parts.inputs.append(self.wire.text(part))
                case 5:
                    parts.outputs.append(self.wire.text(part))
                case 7:
                    parts.nodes.append(node_at(self.wire, part.span))
                case 10:
                    parts.domain = self.wire.text(part)
                case 11:
                    parts.defaults[self._text(part.span, 1)] = part.span
                case 13:
                    parts.overload = self.wire.text(part)
        return parts

    def _text(self, span: Span, number: int) -> str:
        found = self.wire.find(span, number)
        return self.wire.text(found) if found else ""
