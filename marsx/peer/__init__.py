"""Peer room: how hosts of one cluster talk to each other.

    wire     frames <-> bytes, no I/O; the list of frame types and of reasons why a connection ends
    link     one connection: deadlines, heartbeat, back-pressure
    tls      cluster CA and host certificates (the `openssl` program), TLS contexts
    token    join tokens: text form, and the store of the ones given out
    server   accepts, checks who it is, hands the link to a service;  client: the other end of that handshake
    join     the service that takes a new host in, and the new host's side of it
    fetch    the log stream: source pushes durable bytes, sink verifies and keeps them
    sync     the block compare stream

Promises: nothing that a peer sends is believed before it is parsed and bounded; every wait has a deadline; a connection
that ends says why with a reason from one table. May import `base`, `tree`, `log`. Knows no volume: it is given small
protocol objects, which `daemon` implements. Starts no thread: blocking calls go to the executor that it is given.
"""
