"""The page's server, for as long as a test looks at it."""

import threading

import pytest

from longrl.watch.server import WatchServer


@pytest.fixture
def serve():
    servers = []

    def start(watched):
        server = WatchServer(watched, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
