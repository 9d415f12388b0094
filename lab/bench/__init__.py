"""Benchmarks: guestnet beside what it replaces, measured in one run, on one machine, as ratios.

Everything happens in throwaway namespaces (`Stage`), with bounded counts and times. Unlike the rest
of the lab, this package imports guestnet: what it measures is the library's own calls.
"""
