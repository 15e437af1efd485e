"""Ports for servers that are told their number before they start."""

import socket

import pytest

from mmesh.local.ports import free_port, is_taken


def test_a_free_port_can_be_bound_and_is_given_once():
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    for port in ports:
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))


def test_a_port_that_somebody_listens_on_is_not_given(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        taken = server.getsockname()[1]
        free = free_port()
        monkeypatch.setattr("mmesh.local.ports._PORTS", (taken, free))
        monkeypatch.setattr("mmesh.local.ports._given", set())
        assert free_port() == free


def test_only_a_port_that_somebody_listens_on_is_taken(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        assert is_taken(taken)
    assert not is_taken(taken)
    monkeypatch.setattr("mmesh.local.ports._HOST", "192.0.2.1")  # no address of this machine
    with pytest.raises(OSError, match=f"port {taken}: "):
        is_taken(taken)
