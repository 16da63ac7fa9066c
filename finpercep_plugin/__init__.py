"""FinPercep: reward models that see where an image is degraded, and RL fine-tuning of super-resolution generators with them, inside BasicSR.

Importing this package imports none of its parts; see `finpercep_plugin.registry` for how they are found.
"""

__version__ = '0.1.0'
