"""tools/web_demo.py as a command: from its arguments to Ctrl-C."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DET_CONFIG, TOOLS
from tiny_data import write_image
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
    stop: signal.Signals, temporary: Path, run_tool: Callable[..., int], *model: object,
    ask: Callable[[str], object],
) -> tuple[int, object]:  # fmt: skip
    """Run the command, ask something of its address, stop it: exit status and answer."""
    with socket.create_server(('127.0.0.1', 0)) as probe:
        port = probe.getsockname()[1]
    seen, kept = [], []

    def visit() -> None:
        try:
            end = time.monotonic() + 120
            while time.monotonic() < end:
                try:
                    socket.create_connection(('127.0.0.1', port)).close()
                    seen.append(ask(f'http://127.0.0.1:{port}/'))
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
            kept.extend(temporary.glob('rmt-web-*'))
        finally:
            os.kill(os.getpid(), stop)

    visitor = threading.Thread(target=visit)
    visitor.start()
    status = run_tool('web_demo', *model, '--port', port)
    visitor.join()
    assert len(kept) == 1  # while it ran
    assert not kept[0].exists()
    return status, seen[0]


def read_page(url: str) -> tuple[str, bytes]:
    """The policy and the page."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.headers['content-security-policy'], answer.read()


def search(url: str, upload: dict) -> dict:
    """The answer to a request that the page itself would never make."""
    with urllib.request.urlopen(f'{url}config', timeout=60) as answer:
        events = json.load(answer)['dependencies']
    (event,) = [e['id'] for e in events if [t[1] for t in e['targets']] == ['change']][:1]
    body = json.dumps(dict(data=[upload], fn_index=event, session_hash='crafted'))
    request = urllib.request.Request(
        f'{url}gradio_api/queue/join', body.encode(), {'content-type': 'application/json'}
    )
    urllib.request.urlopen(request, timeout=60).close()
    queue = f'{url}gradio_api/queue/data?session_hash=crafted'
    with urllib.request.urlopen(queue, timeout=60) as lines:
        for line in lines:
            message = json.loads(line.removeprefix(b'data: ').strip() or b'{}')
            if message.get('msg') == 'process_completed':
                return message
    raise AssertionError('no answer')


def test_a_checkpoint_is_served(
    checkpoints: dict[str, Path], temporary: Path, run_tool: Callable[..., int]
) -> None:
    pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
    model = (DET_CONFIG, checkpoints[DET_CONFIG])
    status, (policy, page) = serve_until(signal.SIGTERM, temporary, run_tool, *model, ask=read_page)
    assert status == 128 + signal.SIGTERM
    assert policy.startswith("default-src 'self'")
    assert b'mask_rcnn_rmt_t_fpn_1x_coco' in page


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    """In a process of its own: pytest's workers take Ctrl-C for themselves."""
    pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    file = write_onnx(tmp_path / 'a.onnx', 'detection')
    (tmp_path / 'temporary').mkdir()
    command = [sys.executable, '-W', 'ignore', TOOLS / 'web_demo.py', file, '--port', '0']
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'TMPDIR': str(tmp_path / 'temporary')},
    ) as process:
        try:
            url = next(line for line in process.stdout if 'Ctrl-C' in line).split()[0]
            assert b'tiny' in read_page(url)[1]
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert 'Traceback' not in errors
    assert not list((tmp_path / 'temporary').glob('[!.]*'))


def test_an_exported_file_is_served_until_sigterm(
    tmp_path: Path, temporary: Path, run_tool: Callable[..., int]
) -> None:
    pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    file = write_onnx(tmp_path / 'a.onnx', 'detection')
    status, (_, page) = serve_until(signal.SIGTERM, temporary, run_tool, file, ask=read_page)
    assert status == 128 + signal.SIGTERM
    assert b'tiny' in page
    assert b'finds objects of 3 classes' in page


def test_no_request_reaches_a_file_that_was_not_uploaded(
    tmp_path: Path, temporary: Path, run_tool: Callable[..., int]
) -> None:
    pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    secret = tmp_path / 'secret.png'
    write_image(secret, np.zeros((8, 8, 3), np.uint8))
    content = secret.read_bytes()
    named = dict(path=str(secret), orig_name='a.png')
    uploads = [named, {**named, 'meta': {'_type': 'gradio.FileData'}}]
    _, answers = serve_until(
        signal.SIGTERM, temporary, run_tool, write_onnx(tmp_path / 'a.onnx', 'detection'),
        ask=lambda url: [search(url, upload) for upload in uploads * 2],
    )  # fmt: skip
    for answer in answers:
        assert not answer['success'] or 'Refused' in str(answer)
    assert secret.read_bytes() == content
