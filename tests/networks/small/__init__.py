"""The small networks: one for each construct that removal of channels has to understand.

No two dims of a network are equal by accident, since equal sizes hide errors.
"""

from __future__ import annotations

from ..zoo import Network
from .attention import ATTENTION
from .blocks import BLOCKS
from .channels import CHANNELS
from .conv import CONV
from .dense import DENSE
from .indexing import INDEXING
from .joins import JOINS
from .operators import OPERATORS
from .recurrent import RECURRENT
from .values import VALUES

SMALL: tuple[Network, ...] = (
    *CONV,
    *CHANNELS,
    *JOINS,
    *DENSE,
    *RECURRENT,
    *ATTENTION,
    *BLOCKS,
    *VALUES,
    *INDEXING,
    *OPERATORS,
)
