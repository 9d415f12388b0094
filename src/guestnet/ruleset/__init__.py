"""Policy and attachments become nftables. Pure: values in, rules and set elements out.

Three parts with three lifetimes: `base` is one constant text per release, `compile_policy` gives
the chains of one distinct policy, and `elements` what one guest adds to sets. So the number of
rules grows with the policies that are in use, never with guests.
"""
