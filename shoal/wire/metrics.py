"""Prometheus metrics of a process, on a port that serves nothing else."""

from prometheus_client import start_http_server

OFF = -1


def serve_metrics(host: str, port: int) -> int:
    """Serves the default registry in a background thread.

    Args:
        host: address to listen on.
        port: 0 takes a free one, OFF serves nothing.

    Returns:
        The port, or OFF.
    """
    if port == OFF:
        return OFF
    server, _ = start_http_server(port, addr=host)
    bound: int = server.server_address[1]
    return bound
