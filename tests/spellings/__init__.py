"""Every way we know to write attention by hand: one row per spelling, one body in test_spellings.py.

A row says what is particular about it; projections, head split and output projection come from ``Sketch``.
To add a spelling, add a row to the file it belongs to. ``issue=3`` rows belong to the second reading issue.
"""

from spellings.around import AROUND, GROUPS
from spellings.base import Spelling
from spellings.between import BETWEEN
from spellings.declined import DECLINED, NEGATIVE
from spellings.forms import FORMS
from spellings.fused import FUSED
from spellings.fused_cache import CACHED
from spellings.fused_declined import FUSED_DECLINED
from spellings.fused_grouped import GROUPED
from spellings.layouts import LAYOUTS
from spellings.masks import MASKS
from spellings.proved import PROVED
from spellings.scale import SCALES
from spellings.surroundings import SURROUNDINGS

SPELLINGS = (
    *SCALES,
    *MASKS,
    *PROVED,
    *BETWEEN,
    *LAYOUTS,
    *GROUPS,
    *AROUND,
    *SURROUNDINGS,
    *FORMS,
    *FUSED,
    *CACHED,
    *GROUPED,
    *FUSED_DECLINED,
    *DECLINED,
    *NEGATIVE,
)
