"""Plans lowered into torch graphs, and what nothing reads any more swept away."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from rewriter.hosts import fx
from rewriter.hosts.fx import FxGraphs
from rewriter.hosts.fx_write import FxWriter, Node
from rewriter.plan import Plan
from runtime_ops import to_torch


def copied(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return a graph module that may be edited; it shares the weights of ``module`` and is in its mode."""
    twin = torch.fx.GraphModule(module, copy.deepcopy(module.graph), type(module).__name__)
    twin.train(module.training)
    return twin


def sweep(module: torch.fx.GraphModule) -> None:
    """Remove what nothing reads."""
    module.graph.eliminate_dead_code(is_impure_node=fx.lasts)
    module.graph.lint()
    module.recompile()


def lifted(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Return the weights of an exported program by the input that stands for each; what it writes to is none."""
    signature = program.graph_signature
    held = {**program.constants, **program.state_dict}
    written = set(signature.buffers_to_mutate.values())
    paths = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    found = {name: held[path] for name, path in paths.items() if path in held and path not in written}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def lower(graphs: FxGraphs, plans: Mapping[str, Plan], program: ExportedProgram | None) -> Any:
    """Make the edits of ``plans`` (by site) in the graph that was read as ``graphs``, which is then out of date.

    Args:
        graphs: the graph that is edited.
        plans: the edits.
        program: the exported program that the graph is of; the result is one too then.
    """
    module = graphs.module
    constants = _Constants(module, program)
    for plan in plans.values():
        for node, expr in plan.values.items():
            with module.graph.inserting_before(node):
                new = FxWriter(module.graph, constants.fetch).tensor(expr)
            _replace(node, new)
    sweep(module)
    return module if program is None else _program(module, program, constants)


def _replace(node: Node, new: Node) -> None:
    """Let everything read ``new`` instead of ``node``, under the old name."""
    node.replace_all_uses_with(new)
    if "val" not in new.meta and "tensor_meta" in node.meta:
        new.meta["tensor_meta"] = node.meta["tensor_meta"]
    name = node.name
    if not node.users:
        node.graph.erase_node(node)
        new.name = name


class _Constants:
    """Arrays that plans bring along: buffers of a graph module, lifted constants of an exported program."""

    def __init__(self, module: torch.fx.GraphModule, program: ExportedProgram | None) -> None:
        self.module, self.lifted = module, program is not None
        self.made: dict[str, torch.Tensor] = {}

    def fetch(self, array: np.ndarray) -> Node:
        """Return the node that fetches an array."""
        taken = {str(n.target) for n in self.module.graph.nodes if n.op in ("get_attr", "placeholder")}
        name = next(n for i in range(len(taken) + 1) if (n := f"graft_constant_{i}") not in taken)
        tensor = to_torch.tensor(np.array(array))
        self.made[name] = tensor
        if not self.lifted:
            self.module.register_buffer(name, tensor, persistent=True)
            return self.module.graph.get_attr(name)
        first = next(n for n in self.module.graph.nodes if n.op == "placeholder")
        with self.module.graph.inserting_before(first):
            node = self.module.graph.placeholder(name)
        mode = detect_fake_mode([n.meta.get("val") for n in self.module.graph.nodes])
        node.meta["val"] = tensor if mode is None else mode.from_tensor(tensor, static_shapes=True)
        return node


def _program(module: torch.fx.GraphModule, old: ExportedProgram, constants: _Constants) -> ExportedProgram:
    """Return an exported program around an edited graph."""
    signature = copy.deepcopy(old.graph_signature)
    for name in constants.made:
        argument = TensorArgument(name=name)
        spec = InputSpec(kind=InputKind.CONSTANT_TENSOR, arg=argument, target=name, persistent=None)
        signature.input_specs.insert(0, spec)
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict=old.state_dict,
        range_constraints=old.range_constraints,
        module_call_graph=old.module_call_graph,
        example_inputs=old.example_inputs,
        constants={**old.constants, **constants.made},
        verifiers=old.verifiers,
    )
