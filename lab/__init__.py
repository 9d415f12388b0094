"""The stage on which tests, the demo and the benchmarks play; no part of the wheel.

Everything here lives in throwaway network namespaces: nothing configures a device of the machine,
and no packet leaves it. `World` is the stage (guest, site, internet), `Guest` a real VM on it,
`Capture` the proof of what was seen on a wire. guestnet itself is never imported: the lab must not
inherit the mistakes it is there to find.
"""
