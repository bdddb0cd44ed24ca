"""Addresses: downloaded once, whole or not at all, and never mistaken for one another."""

import functools
import hashlib
import http.server
import threading

import pytest
import torch
from released_files import MINI, numbered
from support import cli

from backbone import RMT
from backbone.weights import fetch
from backbone.weights.checkpoint import CheckpointError
from backbone.weights.fetch import local_file
from backbone.weights.match import load_backbone
from backbone.weights.read import read_checkpoint


class Handler(http.server.SimpleHTTPRequestHandler):
    """Counts what is asked for; says of ``cut`` files that they are longer than they are."""

    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def send_header(self, name, value):
        if name == 'Content-Length' and 'cut' in self.path:
            value = str(int(value) + 100)
        super().send_header(name, value)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(folder, its address); downloads go to a cache of their own."""
    folder = tmp_path / 'served'
    (folder / 'a').mkdir(parents=True)
    (folder / 'b').mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    Handler.asked = []
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def cached(tmp_path):
    return sorted(p.name for p in (tmp_path / 'cache/hub/checkpoints').iterdir())


def test_two_addresses_of_one_name_do_not_meet(served, tmp_path):
    folder, address = served
    for i, name in enumerate('ab'):
        torch.save({'w': torch.full((2,), i)}, folder / name / 'weights.pth')
    for _ in range(2):
        for i, name in enumerate('ab'):
            found = read_checkpoint(f'{address}/{name}/weights.pth?download=1')
            assert found['w'].tolist() == [i, i]
    assert len(Handler.asked) == 2  # each once
    assert all(name.endswith('.pth') for name in cached(tmp_path))


def test_a_download_that_is_cut_leaves_nothing(served, tmp_path):
    folder, address = served
    torch.save({'w': torch.ones(2)}, folder / 'cut.pth')
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r'cut\.pth: download failed \(.* bytes came'):
            read_checkpoint(f'{address}/cut.pth')
    assert cached(tmp_path) == []
    with pytest.raises(CheckpointError, match=r'none\.pth: download failed .*404'):
        read_checkpoint(f'{address}/none.pth')
    with pytest.raises(CheckpointError, match='download failed'):
        read_checkpoint('http://127.0.0.1:1/none.pth')


def test_a_refused_download_says_where_it_lies(served):
    folder, address = served
    (folder / 'page.pth').write_text('<html>sign in</html>')
    with pytest.raises(CheckpointError, match=r'page-\w{16}\.pth: an HTML page'):
        read_checkpoint(f'{address}/page.pth')


def test_what_torch_downloaded_is_used_if_its_name_proves_it(served, tmp_path):
    folder, address = served
    torch.save({'w': torch.ones(2)}, folder / 'weights.pth')
    content = (folder / 'weights.pth').read_bytes()
    cache = tmp_path / 'cache/hub/checkpoints'
    cache.mkdir(parents=True)
    good = f'weights-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    (cache / good).write_bytes(content)
    (cache / 'weights-0123abcd.pth').write_bytes(content)
    assert local_file(f'{address}/{good}') == str(cache / good)
    with pytest.raises(CheckpointError, match='404'):
        local_file(f'{address}/weights-0123abcd.pth')


@pytest.mark.parametrize(('rank', 'downloads'), [('0', True), (None, True), ('1', False)])
def test_one_process_of_a_machine_downloads(rank, downloads, served, monkeypatch):
    folder, address = served
    (folder / 'weights.pth').write_bytes(b'x')
    waited = []
    monkeypatch.setattr(fetch, 'is_distributed', lambda: True)
    monkeypatch.setattr(fetch, 'barrier', lambda: waited.append(len(Handler.asked)))
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    if rank is not None:
        monkeypatch.setenv('LOCAL_RANK', rank)
    if downloads:
        local_file(f'{address}/weights.pth')
        assert waited == [1]  # the others wait until it is there
    else:
        with pytest.raises(CheckpointError, match="failed in this machine's first process"):
            local_file(f'{address}/weights.pth')
        assert waited == [0]


def test_a_failed_download_lets_no_other_process_wait(served, monkeypatch):
    waited = []
    monkeypatch.setattr(fetch, 'is_distributed', lambda: True)
    monkeypatch.setattr(fetch, 'barrier', lambda: waited.append(1))
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(CheckpointError, match='404'):
        local_file(f'{served[1]}/none.pth')
    assert waited == [1]


def test_a_backbone_is_loaded_from_an_address(served):
    folder, address = served
    weights = numbered(RMT(MINI))
    torch.save({'model': weights}, folder / 'rmt.pth')
    model = RMT(MINI, init_cfg=dict(type='Pretrained', checkpoint=f'{address}/rmt.pth'))
    model.init_weights()
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    model = RMT(MINI)
    load_backbone(model, f'{address}/rmt.pth')
    assert len(Handler.asked) == 1


def test_tools_take_addresses(served, run_tool, capsys):
    folder, address = served
    torch.save({'model': numbered(RMT('tiny'))}, folder / 'rmt.pth')
    assert run_tool('convert_checkpoint', '--inspect', f'{address}/rmt.pth') == 0
    assert 'variant: RMT-T' in capsys.readouterr().out
    assert run_tool('convert_checkpoint', '--inspect', f'{address}/none.pth') == 2
    assert 'none.pth: download failed' in capsys.readouterr().err
    for what in (f'{address}/rmt.pth', 'https://x/y.pth', 's3://bucket/y.pth'):
        assert cli.weights_file(what, 'checkpoint') == what
    with pytest.raises(cli.UserError, match='no such file'):
        cli.weights_file('none.pth', 'checkpoint')
