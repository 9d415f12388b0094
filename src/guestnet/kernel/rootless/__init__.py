"""A site that needs no root: a private user and network namespace, and the process that holds it.

The boundary: `agent` runs inside, with the rights of the namespace's root, which are none outside;
`RootlessSite` stands for it in the owner's process. A process with threads cannot step into a user
namespace (setns(2)), hence two of them. When the owner ends, so does the agent, and with it the
namespace and everything in it.
"""
