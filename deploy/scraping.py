"""Reads the Prometheus pages of a cluster's processes."""

from __future__ import annotations

import http.client
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.parser import text_string_to_metric_families

from deploy.core.reading import Page
from shoal.client.model import ProcessInfo

_TIMEOUT_S = 2.0


def read_pages(processes: Iterable[ProcessInfo]) -> dict[str, Page]:
    """The pages by process name, read side by side; one that does not answer is left out."""
    serving = [each for each in processes if each.metrics_address]
    if not serving:
        return {}
    with ThreadPoolExecutor(len(serving)) as threads:
        read = threads.map(lambda each: read_page(each.metrics_address), serving)
        return {
            each.name: page for each, page in zip(serving, read, strict=True) if page is not None
        }


def read_page(address: str) -> Page | None:
    """The page at host:port, or None."""
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return parse_page(text)


def parse_page(text: str) -> Page:
    """The samples of a page."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
