"""The table of operator tests: one row for each case, by family. `test_operators.py` runs it."""

from __future__ import annotations

from ops.rows import Row
from ops.rows_choices import COMPARISONS, INTEGERS, MASKS, REDUCTIONS, SELECTIONS
from ops.rows_elementwise import ACTIVATIONS, ARITHMETIC
from ops.rows_functions import CIRCULAR, EXPONENTIALS, GATES, STEPS
from ops.rows_indexing import EMBEDDINGS, ORDER, READING, WRITING
from ops.rows_mac import CONVOLUTIONS, PRODUCTS, TRANSPOSED
from ops.rows_meeting import DISTANCES, EXTREMES, MEETING
from ops.rows_norms import DIVISIONS, MOMENTS, NORMS, SOFTMAXES
from ops.rows_ranks import RANKS
from ops.rows_recurrent import FOURIER, RECURRENT
from ops.rows_shape import CHOICES, MOVEMENT, POOLS, RESIZES
from ops.rows_spatial import INTERPOLATIONS, SAMPLING, VOLUME_POOLS

FAMILIES: dict[str, tuple[Row, ...]] = {
    "convolutions": CONVOLUTIONS,
    "transposed convolutions": TRANSPOSED,
    "products": PRODUCTS,
    "arithmetic": ARITHMETIC,
    "activations": ACTIVATIONS,
    "gates": GATES,
    "exponentials": EXPONENTIALS,
    "circular": CIRCULAR,
    "steps": STEPS,
    "movement": MOVEMENT,
    "reading by index": READING,
    "writing by index": WRITING,
    "writes that meet": MEETING,
    "extremes": EXTREMES,
    "distances": DISTANCES,
    "embeddings": EMBEDDINGS,
    "order": ORDER,
    "pools": POOLS,
    "resizes": RESIZES,
    "choices": CHOICES,
    "pools of volumes": VOLUME_POOLS,
    "interpolations": INTERPOLATIONS,
    "sampling": SAMPLING,
    "recurrent": RECURRENT,
    "fourier": FOURIER,
    "softmaxes": SOFTMAXES,
    "norms": NORMS,
    "moments": MOMENTS,
    "divisions": DIVISIONS,
    "comparisons": COMPARISONS,
    "selections": SELECTIONS,
    "reductions": REDUCTIONS,
    "integers": INTEGERS,
    "masks": MASKS,
    "seven axes": RANKS,
}
