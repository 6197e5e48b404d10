"""Process groups, seeds and the CPU backend. May import megatron, and flow and below.

Importing it makes a later import of megatron.core quiet; the other packages that use megatron
import this one first for that reason.
"""

from vila_mc.parallel.quiet import quiet_megatron_import

quiet_megatron_import()
