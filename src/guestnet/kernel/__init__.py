"""Doing: the only room that speaks to the Linux kernel.

Everything it does was decided elsewhere and arrives as values; every failure leaves it as a
`HostError` with the call, the errno and the object.
"""
