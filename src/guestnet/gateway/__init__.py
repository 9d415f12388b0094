"""The processes that read what guests wrote: questions to resolvers, first bytes of connections.

The boundary: everything here but `supervisor`, `process` and `doorway` runs in workers, processes
of their own without rights (`confine`), which are handed their sockets, told of guests and policies
by messages, and report what they decided. If one dies, it is started again and told everything once
more; new flows that the kernel gave to it wait meanwhile, and the others' do not notice.
"""
