"""The small networks: one for each construct that removal of channels has to understand.

No two dims of a network are equal by accident, since equal sizes hide errors.
"""

from __future__ import annotations

from . import Network
from .small_attention import ATTENTION
from .small_blocks import BLOCKS
from .small_channels import CHANNELS
from .small_conv import CONV
from .small_dense import DENSE
from .small_joins import JOINS
from .small_recurrent import RECURRENT

SMALL: tuple[Network, ...] = (*CONV, *CHANNELS, *JOINS, *DENSE, *RECURRENT, *ATTENTION, *BLOCKS)
