"""Where a Ray cluster is said to be: mistakes are told in words, at once, and before Ray is asked."""

import socket
import sys
import threading

import pytest
from models import block_weights, save

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.cluster.address import asked_address, require_answer
from convert_to_quant.quantization import ConversionError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_where_it_is_asked_for(monkeypatch):
    assert [asked_address(a) for a in (None, "auto", "local", "h:1", "[::1]:6379")] == [
        "local",
        "auto",
        "local",
        "h:1",
        "[::1]:6379",
    ]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert asked_address(None) == "10.0.0.1:6379"
    assert asked_address("local") == "local"


@pytest.mark.parametrize("given", ["h", ":1", "h:", "h:x", "h:0", "h:65536", "h:-1", "h:1:", "h:\u0663"])
def test_no_address(given):
    with pytest.raises(ConversionError, match=r"must be HOST:PORT of a cluster's head"):
        asked_address(given)


def test_ray_client_is_refused_by_name():
    with pytest.raises(ConversionError, match="Ray Client is not supported: run this on a node"):
        asked_address("ray://h:10001")


def answering(answer):
    """Listen on the loopback, answer one connection with some bytes and close it; return the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = server.accept()
        with server, connection:
            connection.recv(64)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_what_answers_there():
    require_answer(answering(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))))
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0\0"):
        with pytest.raises(ConversionError, match="what answers there is no head of a Ray cluster"):
            require_answer(answering(answer))


def test_nobody_answers(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    model = save(tmp_path / "m.safetensors", block_weights())
    models = ["-i", str(model), "-i", str(save(tmp_path / "n.safetensors", block_weights()))]
    pytest.importorskip("ray")
    assert main([*models, "-o", str(tmp_path / "out"), "--ray", address]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0] == f"error: --ray {address}: Connection refused; is the cluster's head running there " + (
        "(ray start --head)?"
    )


def test_ray_is_asked_for_by_name_and_only_for_conversions(tmp_path, capsys, monkeypatch):
    model = str(save(tmp_path / "m.safetensors", block_weights()))
    assert main(["-i", model, "--ray", "--dry-run"]) == 1
    assert "--ray is for conversions, and a dry run is made here" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["-i", model, "--ray"]) == 1
    message = "error: --ray: ray is needed: pip install 'convert-to-quant-toolkit[ray]'\n"
    assert capsys.readouterr().err == message
