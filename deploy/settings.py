"""Settings of the controller, from `SHOAL_CONTROLLER_*`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """Settings of one cluster's controller.

    Attributes:
        host: address to listen on, and for the services it starts.
        port: 0 takes a free one; the catalog tells others.
        data: the cluster's folder.
        servers: shard servers of a cluster that was never scaled.
        shards: default shard count of collections; 0 is `servers`.
        encoders: encoder workers, likewise.
        routers: routers, likewise.
        router_port: port of router-0; routers that are added later take free ones.
        router_port_step: from one router's port to the next one's; 0 where each has an
            address of its own.
        probe_interval_s: between two health checks of a process.
        probe_timeout_s: longest that one may take.
        hung_after_misses: a process that missed so many in a row is ended and
            started again.
        counts_interval_s: between two topologies that differ in document
            counts alone.
        open_timeout_s: longest that opening a shard may take.
        load_timeout_s: longest that loading a model may take.
        create_timeout_s: time to create a collection for callers that set no
            deadline.
        train_quiet_s: a collection of kind colbert that was not written to for so
            long, and is not being ingested, gets its codec trained.
        stop_grace_s: time for a process to end by itself.
    """

    host: str = "127.0.0.1"
    port: int = 0
    data: str = ".shoal"
    servers: int = 2
    shards: int = 0
    encoders: int = 1
    routers: int = 1
    router_port: int = 50051
    router_port_step: int = 1
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 5.0
    hung_after_misses: int = 6
    counts_interval_s: float = 2.0
    open_timeout_s: float = 600.0
    load_timeout_s: float = 600.0
    create_timeout_s: float = 120.0
    train_quiet_s: float = 3.0
    stop_grace_s: float = 5.0
