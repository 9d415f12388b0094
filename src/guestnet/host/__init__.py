"""The front door: store, plan and kernel behind one object.

with Host.open() as host:
    attachment = host.attach("vm-1", policy="public")
"""

from .host import Host

__all__ = ["Host"]
