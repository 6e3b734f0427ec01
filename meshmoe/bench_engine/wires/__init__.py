"""Links between network namespaces: real sockets and real packets, delayed and rate-limited as a topology file says."""
