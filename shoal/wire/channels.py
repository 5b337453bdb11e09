"""Options that every Shoal server and channel uses."""


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options for `grpc` and `grpc.aio`, servers and channels alike.

    Args:
        max_message_bytes: largest message sent or received; -1 for no bound.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.so_reuseport", 0),
        ("grpc.enable_http_proxy", 0),
    ]
