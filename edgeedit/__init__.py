"""edgeedit: repair a vision encoder from a few shots, ship the repair as a signed patch, swap it into a running session.

The package holds rooms; each room's docstring says what it may import.  Importing `edgeedit` imports nothing else.
"""

__version__ = "0.1.0"
