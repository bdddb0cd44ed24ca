"""tools/web_demo.py as a command: from its arguments to Ctrl-C."""

import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DET_CONFIG
from tiny_onnx import write_onnx


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command puts what it keeps meanwhile."""
    folder = tmp_path / 'temporary'
    folder.mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(folder))
    return folder


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['a.py'], 'a.py: give CONFIG CHECKPOINT, or one FILE.onnx'),
        (['a.py', 'a.pth', 'b.pth'], 'give CONFIG CHECKPOINT'),
        (['a.onnx', '--device', 'cpu'], '--device, --cfg-options: are of a config'),
        (['a.onnx', '--port', '70000'], '--port 70000: give a number from 0 to 65535'),
        (['a.onnx', '--score-thr', '2'], '--score-thr 2.0: give a score from 0 to 1'),
        (['a.onnx', '--max-mb', '0'], '--max-mb 0: give more than 0'),
        (['a.onnx', '--host', 'no.such.host.invalid', '--port', '0'], '--host no.such.host'),
        (['a.onnx', '--host', '192.0.2.1', '--port', '0'], 'no address of this machine'),
        (['a.onnx', '--port', '0'], 'a.onnx: no such file'),
        ([DET_CONFIG, 'a.pth', '--port', '0'], 'checkpoint a.pth: no such file'),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_ends_in_one_line(
    arguments: list[str], says: str, temporary: Path, run_tool: Callable[..., int],
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
    assert run_tool('web_demo', *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')
    assert says in line
    assert not list(temporary.iterdir())


def test_a_port_that_is_taken(run_tool: Callable[..., int], capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert run_tool('web_demo', DET_CONFIG, 'a.pth', '--port', port) == 2
    assert f'--port {port}: taken on 127.0.0.1; name another' in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(
    run_tool: Callable[..., int], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert run_tool('web_demo', DET_CONFIG, 'a.pth') == 2
    assert '[web]' in capsys.readouterr().err


def serve_until(
    stop: signal.Signals, temporary: Path, run_tool: Callable[..., int], *model: object
) -> tuple[int, str, bytes]:
    """Run the command, ask for its page once, stop it: exit status, policy, page."""
    with socket.create_server(('127.0.0.1', 0)) as probe:
        port = probe.getsockname()[1]
    seen, kept = [], []

    def visit() -> None:
        end = time.monotonic() + 120
        while not seen and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=30) as answer:
                    seen.append((answer.headers['content-security-policy'], answer.read()))
            except OSError:
                time.sleep(0.1)
        kept.extend(temporary.iterdir())
        os.kill(os.getpid(), stop)

    visitor = threading.Thread(target=visit)
    visitor.start()
    status = run_tool('web_demo', *model, '--port', port)
    visitor.join()
    assert len(kept) == 1  # while it ran
    assert not list(temporary.iterdir())
    return status, *seen[0]


def test_a_checkpoint_is_served_until_ctrl_c(
    checkpoints: dict[str, Path], temporary: Path, run_tool: Callable[..., int]
) -> None:
    pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
    model = (DET_CONFIG, checkpoints[DET_CONFIG])
    status, policy, page = serve_until(signal.SIGINT, temporary, run_tool, *model)
    assert status == 0
    assert policy.startswith("default-src 'self'")
    assert b'mask_rcnn_rmt_t_fpn_1x_coco' in page


def test_an_exported_file_is_served_until_sigterm(
    tmp_path: Path, temporary: Path, run_tool: Callable[..., int]
) -> None:
    pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    file = write_onnx(tmp_path / 'a.onnx', 'detection')
    status, _, page = serve_until(signal.SIGTERM, temporary, run_tool, file)
    assert status == 128 + signal.SIGTERM
    assert b'tiny' in page
    assert b'finds objects of 3 classes' in page
