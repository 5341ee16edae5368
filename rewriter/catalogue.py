"""What there is to choose from: rules and operations."""

from __future__ import annotations

from rewriter import registry
from rewriter.plan import Rule
from runtime_ops.ops import OPS
from runtime_ops.spec import OpSpec


def rules() -> dict[str, Rule]:
    """Return every rule by name."""
    return registry.rules()


def ops() -> dict[str, OpSpec]:
    """Return every operation of the domain ``ai.graft`` by name."""
    return dict(OPS)
