"""Segment attention: attention over each segment's tokens alone."""

from __future__ import annotations

import numpy as np
import pytest
from plain_attention import attention

from runtime_ops.ops.segment_attention import SEGMENT_ATTENTION as SPEC
from runtime_ops.spec import Sample


@pytest.mark.parametrize("sample", SPEC.samples(), ids=lambda sample: sample.id)
def test_golden_is_attention_within_segments(sample: Sample) -> None:
    arrays = {name: array for name, array in sample.arrays.items() if array is not None}
    ids = arrays.pop("segments")
    hidden = np.where(ids[:, None, :, None] == ids[:, None, None, :], 0.0, -np.inf)
    arrays["bias"] = hidden + arrays.get("bias", 0.0)
    golden = SPEC.golden(sample.arrays, sample.attrs)
    np.testing.assert_allclose(golden, attention(arrays, sample.attrs), rtol=1e-6, atol=1e-6)
