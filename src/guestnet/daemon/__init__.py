"""The daemon: `Host` behind an HTTP API on a Unix socket, for as long as the machine runs.

Who may open the socket may do everything; that is decided by the socket's mode and group alone. The
daemon holds no state of its own: what it has set up goes on working while it is down, and the next
one takes it over. `create_app` is the API, `serve.run` the process around it.
"""
