"""The client without its I/O: flows that say what to do next, and decide by the outcome of the last step.

A flow is a generator. It yields an effect, is sent the outcome, and returns its result. `warmlane_client.sync` and
`warmlane_client.asynchronous` carry effects out; nothing here opens a connection, reads a clock or sleeps.
"""
