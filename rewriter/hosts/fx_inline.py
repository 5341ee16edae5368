"""Normal form of traced graphs: torch's own attention modules, which tracing leaves whole, opened into their parts.

They are opened for the mode that they are in: in ``eval`` mode without dropout of the probabilities.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

Node = torch.fx.Node
Proxy = torch.fx.Proxy


def opened(module: torch.fx.GraphModule) -> bool:
    """Open every call of a module that holds attention, in place; return whether there was any."""
    calls = [node for node in module.graph.nodes if _opens(module, node)]
    for node in calls:
        _open(module, node)
    if calls:
        module.graph.eliminate_dead_code()
        module.recompile()
    return bool(calls)


def holds_attention(module: nn.Module) -> bool:
    """Return whether a module is one of those that are opened."""
    return type(module) in FORWARD


def _opens(module: torch.fx.GraphModule, node: Node) -> bool:
    """Return whether a call is opened: its batch and the types of its masks must be known."""
    if node.op != "call_module" or not holds_attention(found := module.get_submodule(str(node.target))):
        return False
    first = _told(node.args[0]) if node.args else None
    known = first is not None and len(first.shape) == 3 and all(_told(n) is not None for n in node.all_input_nodes)
    parts = [m for m in found.modules() if isinstance(m, nn.MultiheadAttention)]
    plain = all(m.bias_k is None and not m.add_zero_attn for m in parts)
    dealt = not isinstance(found, nn.MultiheadAttention) or all(u.target is operator.getitem for u in node.users)
    return known and plain and dealt


def _told(value: Any) -> Any:
    """Return the metadata of a tensor, None if there is none."""
    told = value.meta.get("val", value.meta.get("tensor_meta")) if isinstance(value, Node) else None
    return told if hasattr(told, "shape") and hasattr(told, "dtype") else None


def _open(module: torch.fx.GraphModule, node: Node) -> None:
    """Replace one call by the calls that its module makes."""
    tracer = torch.fx.proxy.GraphAppendingTracer(module.graph)
    inner = Part(module.get_submodule(str(node.target)), str(node.target), tracer)
    with module.graph.inserting_before(node):
        proxies: Any = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: Proxy(n, tracer))  # type: ignore
        result = inner(*proxies[0], **proxies[1])
    if isinstance(result, Proxy):
        node.replace_all_uses_with(result.node)
    else:
        for user in list(node.users):
            part = result[user.args[1]]
            user.replace_all_uses_with(part.node if isinstance(part, Proxy) else part)
            module.graph.erase_node(user)
    module.graph.erase_node(node)


class Part:
    """A module inside a graph: its parts are called, and its weights fetched, by nodes of that graph."""

    def __init__(self, module: nn.Module, path: str, tracer: torch.fx.proxy.TracerBase) -> None:
        self._module, self._path, self._tracer = module, path, tracer

    def __getattr__(self, name: str) -> Any:
        found, path = getattr(self._module, name), f"{self._path}.{name}"
        if isinstance(found, torch.Tensor):
            return self._tracer.create_proxy("get_attr", path, (), {})
        return Part(found, path, self._tracer) if isinstance(found, nn.Module) else found

    def parts(self) -> list[Part]:
        """Return the modules of a list of modules."""
        return [Part(m, f"{self._path}.{name}", self._tracer) for name, m in self._module.named_children()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module by nodes of the graph."""
        forward = FORWARD.get(type(self._module))
        if forward is not None:
            return forward(self, *args, **kwargs)
        return self._tracer.create_proxy("call_module", self._path, args, kwargs)


def _attention(
    m: Part, query: Any, key: Any, value: Any, key_padding_mask: Any = None, need_weights: bool = True,
    attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """Compute nn.MultiheadAttention on [s b m], or on [b s m] where it has the batch first."""
    parts = _projected(m, query, key, value)
    parts = [x if m.batch_first else x.transpose(0, 1) for x in parts]
    q, k, v = (x.unflatten(-1, (m.num_heads, m.head_dim)).transpose(1, 2) for x in parts)
    mask = _mask(attn_mask, key_padding_mask, m)
    drop = m.dropout if m.training else 0.0
    weights = None
    if need_weights:
        scores = (q * m.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), drop, drop > 0)
        out = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
    out = m.out_proj(out.transpose(1, 2).flatten(-2))
    return out if m.batch_first else out.transpose(0, 1), weights


def _projected(m: Part, q: Any, k: Any, v: Any) -> list[Any]:
    if q.node is k.node is v.node and m.in_proj_weight is not None:
        packed = F.linear(q, m.in_proj_weight, m.in_proj_bias).chunk(3, -1)
        return [packed[i] for i in range(3)]
    bias = m.in_proj_bias
    biases = [None] * 3 if bias is None else bias.chunk(3, 0)
    if m.in_proj_weight is None:
        weights = [m.q_proj_weight, m.k_proj_weight, m.v_proj_weight]
    else:
        weights = m.in_proj_weight.chunk(3, 0)
    return [F.linear(x, weights[i], biases[i]) for i, x in enumerate((q, k, v))]


def _mask(attn_mask: Any, padding: Any, m: Part) -> Any:
    """Return both masks as one bias that broadcasts to [b h s t]; a boolean one of torch's module hides where true."""
    parts = []
    if attn_mask is not None:
        bias = _bias(attn_mask, m)
        own = len(_told(attn_mask.node).shape) == 3  # a mask for every head of every sequence
        parts.append(bias.unflatten(0, (-1, m.num_heads)) if own else bias)
    if padding is not None:
        parts.append(_bias(padding, m).unsqueeze(1).unsqueeze(1))
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _bias(mask: Any, m: Part) -> Any:
    if _told(mask.node).dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=m.out_proj._module.weight.dtype).masked_fill(mask, float("-inf"))


def _attended(m: Part, attention: Part, x: Any, other: Any, mask: Any, padding: Any) -> Any:
    return attention(x, other, other, attn_mask=mask, key_padding_mask=padding, need_weights=False)[0]


def _forwarded(m: Part, x: Any, last: Part) -> Any:
    return last(m.linear2(m.dropout(m.activation(m.linear1(x)))))


def _encoder_layer(
    m: Part, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
) -> Any:
    def attend(x: Any) -> Any:
        return m.dropout1(_attended(m, m.self_attn, x, x, src_mask, src_key_padding_mask))

    if m.norm_first:
        x = src + attend(m.norm1(src))
        return x + _forwarded(m, m.norm2(x), m.dropout2)
    x = m.norm1(src + attend(src))
    return m.norm2(x + _forwarded(m, x, m.dropout2))


def _decoder_layer(
    m: Part, tgt: Any, memory: Any, tgt_mask: Any = None, memory_mask: Any = None,
    tgt_key_padding_mask: Any = None, memory_key_padding_mask: Any = None, tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
) -> Any:  # fmt: skip
    def own(x: Any) -> Any:
        return m.dropout1(_attended(m, m.self_attn, x, x, tgt_mask, tgt_key_padding_mask))

    def cross(x: Any) -> Any:
        return m.dropout2(_attended(m, m.multihead_attn, x, memory, memory_mask, memory_key_padding_mask))

    if m.norm_first:
        x = tgt + own(m.norm1(tgt))
        x = x + cross(m.norm2(x))
        return x + _forwarded(m, m.norm3(x), m.dropout3)
    x = m.norm1(tgt + own(tgt))
    x = m.norm2(x + cross(x))
    return m.norm3(x + _forwarded(m, x, m.dropout3))


def _encoder(m: Part, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None) -> Any:
    for layer in m.layers.parts():
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return src if m.norm is None else m.norm(src)


def _decoder(m: Part, tgt: Any, memory: Any, *masks: Any, **named: Any) -> Any:
    for layer in m.layers.parts():
        tgt = layer(tgt, memory, *masks, **named)
    return tgt if m.norm is None else m.norm(tgt)


def _transformer(
    m: Part, src: Any, tgt: Any, src_mask: Any = None, tgt_mask: Any = None, memory_mask: Any = None,
    src_key_padding_mask: Any = None, tgt_key_padding_mask: Any = None, memory_key_padding_mask: Any = None,
    src_is_causal: Any = None, tgt_is_causal: Any = None, memory_is_causal: bool = False,
) -> Any:  # fmt: skip
    memory = m.encoder(src, src_mask, src_key_padding_mask)
    return m.decoder(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)


FORWARD: dict[type, Callable[..., Any]] = {
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerDecoderLayer: _decoder_layer,
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoder: _decoder,
    nn.Transformer: _transformer,
}
