"""From torch back to ONNX: rewritten modules leave as models that ONNX Runtime runs, with our kernels or without."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewriter import files
from rewriter.errors import GraftError

if TYPE_CHECKING:
    import onnx_ir as ir


def to_onnx(
    module: Any, args: Sequence[Any] = (), output: str | os.PathLike[str] | None = None, **options: Any
) -> ir.Model:
    """Export a torch module or program that calls our operations to an ONNX model.

    Every call becomes a node of the domain ``ai.graft`` with its function body, as ``apply`` writes it.

    Args:
        module: a module, a graph module or an exported program.
        args: example inputs; not needed for an exported program.
        output: file to write; None writes nothing.
        options: passed on to ``torch.onnx.export``, such as ``dynamic_shapes`` or ``opset_version``.

    Returns:
        The model.

    Raises:
        GraftError: torch cannot export the module, or the output cannot be written.
    """
    try:
        from rewriter import fx_export
    except ImportError as error:
        raise GraftError(f"to_onnx needs torch and onnxscript: {error}; pip install attn-graft[torch]") from error
    target = None if output is None else files.check_output(output, None)
    model = fx_export.exported(module, tuple(args), options)
    if target is not None:
        with files.staging(target) as folder:
            files.save_into(model, folder, target.name)
            files.publish(folder, target)
    return model
