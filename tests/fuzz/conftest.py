"""What the surfaces share."""

import socket
from typing import NoReturn

import pytest


def _unknown(*_: object, **__: object) -> NoReturn:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture
def no_network(monkeypatch):
    """No host has an address, nobody is asked for credentials, and nothing is tried twice."""
    monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("excite.storage.connection.TRIES", 1)
