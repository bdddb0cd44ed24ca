"""torchvision imports in our processes, whatever torch it was compiled for."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from backbone.engine import PortableRunner, torchvision_import

# what the real one does where its library did not load
DESCRIBES_WHAT_IS_NOT = """
import torch
@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return scores
"""
OTHER = 'raise RuntimeError("compiled with different CUDA versions")'
PROBE = """
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))

def attempt(operators):
    (folder / 'torchvision/_meta_registrations.py').write_text(operators)
    for name in [name for name in sys.modules if name.startswith('torchvision')]:
        del sys.modules[name]
    try:
        import torchvision.transforms
    except Exception as error:
        return str(error)
    return 'imported'

sys.dont_write_bytecode = True
# an environment made by `make setup` may have had the help since Python's start
sys.meta_path = [f for f in sys.meta_path if type(f).__module__ != 'torchvision_import']
ends = [attempt(sys.argv[2])]
import backbone.engine
assert 'torchvision' not in sys.modules
for operators in ('', sys.argv[3], sys.argv[2]):
    ends.append([attempt(operators), backbone.engine.torchvision_import.was_necessary()])
print(json.dumps(ends))
"""


def test_only_an_import_that_fails_for_its_operators_is_helped(tmp_path: Path) -> None:
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text('from torchvision import _meta_registrations')
    (package / 'transforms.py').touch()
    done = subprocess.run(
        [sys.executable, '-c', PROBE, tmp_path, DESCRIBES_WHAT_IS_NOT, OTHER],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    without_us, works, other, helped = json.loads(done.stdout.splitlines()[-1])
    assert without_us == 'operator torchvision::nms does not exist'
    assert works == ['imported', False]
    assert other == ['compiled with different CUDA versions', False]
    assert helped == ['imported', True]


def test_an_environment_made_whole_helps_programs_that_know_nothing_of_us(tmp_path: Path) -> None:
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text(DESCRIBES_WHAT_IS_NOT)
    torchvision_import.at_every_start(tmp_path)
    program = f"""
import site, sys
sys.path.insert(0, {str(tmp_path)!r})
site.addsitedir({str(tmp_path)!r})
assert 'torch' not in sys.modules and 'backbone' not in sys.modules
import torchvision
print(torchvision.meta_nms.__name__, 'backbone' in sys.modules)
import backbone.engine
print(backbone.engine.torchvision_import.was_necessary())
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.split() == ['meta_nms', 'False', 'True'], done.stderr


@pytest.mark.parametrize('helped', [True, False])
def test_the_log_of_a_run_says_so(helped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    runner = object.__new__(PortableRunner)
    runner.logger = SimpleNamespace(info=said.append)
    monkeypatch.setattr('mmengine.runner.Runner._log_env', lambda *_: None)
    monkeypatch.setattr(torchvision_import, 'was_necessary', lambda: helped)
    runner._log_env({})
    assert said == [torchvision_import.LINE] * helped
