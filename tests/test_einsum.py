"""Every Einsum that is read as a matrix product is one: compared with numpy on lengths that are all different."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from sketch import Sketch

from rewriter.hosts.onnx import OnnxGraphs
from runtime_ops import interpret

SIZES = dict(zip("bhijklmnd", (2, 3, 4, 5, 6, 7, 8, 9, 10), strict=True))
READ = (
    "ibh,hnd->ibnd",  # XLNet's projection: two letters of its own on the right
    "ibnd,hnd->ibh",  # and back: two letters contracted
    "ibnd,jbnd->bnij",
    "bnij,jbnd->ibnd",
    "bhid,bhjd->bhij",
    "bijk,bkln->bjinl",  # everything at once: a leading letter, several of each side
    "bijkl,blkmn->nbmji",
    "ij,jk",  # the result is implied
    "...id,...jd->...ij",
)
NOT_READ = (
    "ijk,kl->il",  # j is summed within one tensor
    "ij,kl->ijkl",  # nothing is contracted
    "ii,ij->ij",  # a diagonal
)


def model(equation: str) -> Sketch:
    f = Sketch("einsum")
    terms = equation.replace("...", "bh").partition("->")[0].split(",")
    x, y = (f.input(f"x{n}", " ".join(str(SIZES[c]) for c in term)) for n, term in enumerate(terms))
    f.output(f.Einsum(x, y, equation=equation))
    return f


@pytest.mark.parametrize("equation", READ)
def test_read(equation: str) -> None:
    graphs = OnnxGraphs(ir.from_proto(model(equation).model()))
    inputs = graphs.model.graph.inputs
    rng = np.random.default_rng(0)
    arrays = {value: rng.standard_normal([int(d) for d in value.shape]) for value in inputs}
    expr = graphs.exprs[graphs.model.graph.outputs[0]]
    want = np.einsum(equation, *arrays.values())
    assert expr.shape == want.shape
    np.testing.assert_allclose(interpret.golden(expr, arrays), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("equation", NOT_READ)
def test_not_read(equation: str) -> None:
    graphs = OnnxGraphs(ir.from_proto(model(equation).model()))
    assert any(expr.attrs["op"] == "Einsum" for expr in graphs.exprs_of("opaque"))
