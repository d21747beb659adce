"""A graph under construction: nodes are added by calling it, and every value has a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

OPSET = 21
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
IR_VERSION = 10

ELEMENT_TYPES = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64}


class GraphBuilder:
    """Collects the nodes and constants of one ONNX model.

    graph("Add", a, b) adds a node and returns its output's name; `domain` is given for operators of ONNX Runtime's own.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def __call__(
        self, operator: str, *inputs: str, outputs: int = 1, name: str = "", domain: str = "", **attributes: Any
    ) -> Any:
        """Adds a node; "" is an optional input left out. Returns the output's name, or a list of several."""
        name = name or f"{operator}_{len(self.nodes)}"
        results = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, results, name=name, domain=domain, **attributes))
        return results[0] if outputs == 1 else results

    def constant(self, name: str, value: Array | np.generic) -> str:
        """A tensor that is part of the model. The same name and value may be given again."""
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if self.constants.setdefault(name, tensor).raw_data != tensor.raw_data:
            raise ValueError(f"{name}: already a constant of another value")
        return name

    def ints(self, *values: int) -> str:
        """A small one-dimensional int64 constant: a shape, axes, bounds."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def choose(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str], name: str) -> str:
        """Adds a node that runs one of two ways to a float value, each of at least one node. Nodes within them must be
        given names: others are counted anew there."""
        branches = {}
        for branch, write in {"then_branch": then, "else_branch": otherwise}.items():
            outside, self.nodes = self.nodes, []
            result = helper.make_tensor_value_info(write(), TensorProto.FLOAT, None)
            branches[branch] = helper.make_graph(self.nodes, f"{name}.{branch}", [], [result])
            self.nodes = outside
        return str(self("If", condition, name=name, **branches))

    def input(self, name: str, element_type: str, shape: Sequence[int | str]) -> str:
        """An input; dimensions that vary are given by name."""
        self.inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[element_type], shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Gives a float value out under a name."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{name}_output"))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def model(self, name: str, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The whole, checked."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="item")
        helper.set_model_props(made, dict(metadata))
        onnx.checker.check_model(made)
        return made
