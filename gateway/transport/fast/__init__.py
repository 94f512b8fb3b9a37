"""Our own gRPC layer on ngh2 and uvloop.

`protocol` is a pure state machine, one per connection: bytes and the clock go in, calls and bytes come out. It stands
on `session` (the only module that knows ngh2), `headers`, `compression`, `admission` and `deadlines`, all pure.
`connection` is the socket, `server` the listeners, the passes of the loop and the drain, `servicer` runs ordinary
generated servicers, `tls` the certificates.
"""
