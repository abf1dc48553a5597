"""Numbers of 16 bits as two int8 digits: 255 high + low.

At this base, not 256, both digits round to nearest and no low digit saturates: what a number is off its nearest multiple of 255 is
between -127.5 and 127.5.
"""

from __future__ import annotations

BASE = 255
# the numbers of two digits; a quantize operator of just this range is how a program says that they are meant
LEAST, MOST = -128 * BASE - 128, 127 * BASE + 127
