"""Whether a run of a graph may take any time, whatever its shapes are: the work of an operator follows a value.

    the file ─▶ nodes, without the weights ─▶ which values come of the inputs' values ─▶ does one of them say how much
                                                                                          is to be done?

A loop may turn as often as an input says, and a range, a tile or a resize may be as large. What a trial run of zeros
took says nothing of such a graph, so its runs never go to the event loop. A size that comes of shapes (`Shape`) is no
such value: who sends it has sent as many elements.

The file is read where it stands, field by field, and weights are passed over: parsing it with a generated class would
take the GIL for as long as that takes. The names and numbers of the fields are those of onnx.proto.
"""

import mmap
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
Content: TypeAlias = "mmap.mmap | bytes"

_LOOPS = frozenset({"Loop", "BeamSearch", "GreedySearch", "Sampling"})
"""They turn until a value of the graph says that it is enough."""
_NESTED = frozenset({"If", "Scan", "SequenceMap"})
_SIZES = {
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Tile": (1,),
    "OneHot": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "Pad": (1,),
    "CenterCropPad": (1,),
    "MaxUnpool": (2,),
    "Col2Im": (1,),
    "AffineGrid": (1,),
    "DFT": (1,),
    "STFT": (1, 3),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "MelWeightMatrix": (0, 1),
}
"""Operator -> which of its inputs say how large its output is."""
_OF_SHAPES = frozenset({"Shape", "Size"})
"""What they give does not follow the values of their input."""
_DEPTH_MAX = 16
"""Graphs within graphs."""

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_FUNCTION_INPUT, _FUNCTION_NODE = 4, 7
_NAME_OF_VALUE, _NAME_OF_TENSOR = 1, 8
_VARINT, _FIXED_64, _DELIMITED, _FIXED_32 = 0, 1, 2, 5
_VARINT_BYTES_MAX = 10


def follows_values(path: Path) -> str:
    """The operator whose work follows a value of an input; empty where there is none.

    What cannot be read counts as one that does: the cost of that is a thread for each run.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _model(content, (0, len(content)))
    except (_Malformed, IndexError, ValueError, OSError):
        return "what cannot be read"


def _model(content: Content, span: Span) -> str:
    for number, part in _fields(content, span):
        if number == _MODEL_GRAPH:
            found = _Graph.read(content, part, _GRAPH_NODE)
            inputs = found.inputs - found.weights
        elif number == _MODEL_FUNCTIONS:
            found = _Graph.read(content, part, _FUNCTION_NODE)
            inputs = found.inputs  # who calls it may give anything
        else:
            continue
        if operator := _follows(content, found.nodes, inputs, 0):
            return operator
    return ""


def _follows(content: Content, nodes: Collection[Span], values: Collection[str], depth: int) -> str:
    """The operator among these nodes whose work follows one of `values`, or what comes of them."""
    if depth > _DEPTH_MAX:
        return "a graph that is nested too deeply"
    of_values = {*values}
    for span in nodes:
        node = _Node.read(content, span)
        if node.operator in _LOOPS:
            return node.operator
        sizes = _SIZES.get(node.operator, ())
        if any(node.inputs[place] in of_values for place in sizes if place < len(node.inputs)):
            return node.operator
        for inner in node.graphs:
            graph = _Graph.read(content, inner, _GRAPH_NODE)
            if operator := _follows(content, graph.nodes, of_values | graph.inputs, depth + 1):
                return operator
        if node.operator in _NESTED or (node.operator not in _OF_SHAPES and not of_values.isdisjoint(node.inputs)):
            of_values.update(node.outputs)
    return ""


@dataclass(slots=True)
class _Graph:
    """A graph or a function: where its nodes are, in an order in which they can be run, and what comes in."""

    nodes: list[Span] = field(default_factory=list)
    inputs: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, content: Content, span: Span, node: int) -> "_Graph":
        """`node` is the number of the field of nodes, which says whether it is a graph or a function."""
        found = cls()
        for number, part in _fields(content, span):
            if number == node:
                found.nodes.append(part)
            elif node == _FUNCTION_NODE and number == _FUNCTION_INPUT:
                found.inputs.add(_text(content, part))
            elif node == _GRAPH_NODE and number == _GRAPH_INPUT:
                found.inputs.update(_named(content, part, _NAME_OF_VALUE))
            elif node == _GRAPH_NODE and number == _GRAPH_INITIALIZER:
                found.weights.update(_named(content, part, _NAME_OF_TENSOR))
        return found


@dataclass(slots=True)
class _Node:
    """One node: its operator, its edges, and the graphs within it."""

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list[Span] = field(default_factory=list)

    @classmethod
    def read(cls, content: Content, span: Span) -> "_Node":
        found = cls()
        attributes: list[Span] = []
        for number, part in _fields(content, span):
            if number == _NODE_INPUT:
                found.inputs.append(_text(content, part))
            elif number == _NODE_OUTPUT:
                found.outputs.append(_text(content, part))
            elif number == _NODE_OPERATOR:
                found.operator = _text(content, part)
            elif number == _NODE_ATTRIBUTE:
                attributes.append(part)
        if found.operator in _NESTED:  # those of a tree are as many as its nodes
            for attribute in attributes:
                inner = _fields(content, attribute)
                found.graphs += [part for number, part in inner if number in {_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS}]
        return found


class _Malformed(Exception):
    """Not a message."""


def _named(content: Content, span: Span, name: int) -> Iterator[str]:
    return (_text(content, part) for number, part in _fields(content, span) if number == name)


def _text(content: Content, span: Span) -> str:
    return content[slice(*span)].decode()


def _fields(content: Content, span: Span) -> Iterator[tuple[int, Span]]:
    """The delimited fields of a message, by their numbers."""
    at, end = span
    while at < end:
        at, tag = _varint(content, at)
        kind = tag & 7
        if kind == _DELIMITED:
            start, size = _varint(content, at)
            at = start + size
            if at > end:
                raise _Malformed
            yield tag >> 3, (start, at)
        elif kind == _VARINT:
            at, _ = _varint(content, at)
        elif kind in {_FIXED_64, _FIXED_32}:
            at += 8 if kind == _FIXED_64 else 4
        else:
            raise _Malformed


def _varint(content: Content, at: int) -> Span:
    """Where the varint at `at` ends, and its value."""
    value = 0
    for index in range(_VARINT_BYTES_MAX):
        byte = content[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that there is more
            return at + index + 1, value
    raise _Malformed
