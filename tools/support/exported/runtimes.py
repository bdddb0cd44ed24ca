"""The two runtimes behind one call: a file is opened, its metadata read, arrays go in and out."""

import os
import threading
from importlib import import_module
from types import ModuleType

import numpy as np

from support.cli import UserError, existing_file, one_line

EXTRA = 'pip install rmt-downstream[export]'


def need(name: str) -> ModuleType:
    """A package of the extra [export].

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed: {EXTRA}') from error


class OnnxRuntime:
    """onnxruntime on the CPU."""

    def __init__(self, path: str, threads: int, precision: str) -> None:
        runtime = need('onnxruntime')
        if precision != 'f32':
            raise UserError(f'--precision {precision}: onnxruntime computes as the file says, f32')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self.session = runtime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        (entry,) = self.session.get_inputs()
        self.shape = [side if isinstance(side, int) else None for side in entry.shape]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(None, {'image': image}), strict=True))


class OpenVino:
    """OpenVINO on the CPU; ``precision='auto'`` lets it take bfloat16 where the CPU has it."""

    def __init__(self, path: str, threads: int, precision: str) -> None:
        openvino = need('openvino')
        core = openvino.Core()
        model = core.read_model(path)
        info = model.get_rt_info()
        texts = info['framework'] if 'framework' in info else {}  # noqa: SIM401 (it has no get)
        self.metadata = {key: texts[key].value for key in texts}
        self.shape = [
            side.get_length() if side.is_static else None for side in model.input().partial_shape
        ]
        self.outputs = [output.get_any_name() for output in model.outputs]
        options = {'INFERENCE_NUM_THREADS': threads, 'PERFORMANCE_HINT': 'LATENCY'}
        if precision == 'f32':
            options['INFERENCE_PRECISION_HINT'] = 'f32'
        self.compiled = core.compile_model(model, 'CPU', options)
        self.lock = threading.Lock()  # it takes one call at a time

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        with self.lock:
            found = self.compiled(image, share_inputs=True)
        return {name: found[i] for i, name in enumerate(self.outputs)}


RUNTIMES = {'onnxruntime': OnnxRuntime, 'openvino': OpenVino}
PRECISIONS = ('f32', 'auto')
Runtime = OnnxRuntime | OpenVino


def open_file(path: str, runtime: str, threads: int | None, precision: str) -> Runtime:
    """A file in a runtime.

    Args:
        threads: how many; None takes a thread a core.

    Raises:
        UserError: no such file, not of ONNX, an unknown runtime or one that is not installed.
    """
    existing_file(path, 'file')
    if runtime not in RUNTIMES:
        raise UserError(f'runtime {runtime}: choose from {", ".join(RUNTIMES)}')
    if precision not in PRECISIONS:
        raise UserError(f'precision {precision}: choose from {", ".join(PRECISIONS)}')
    try:
        return RUNTIMES[runtime](path, threads or len(os.sched_getaffinity(0)), precision)
    except UserError:
        raise
    except Exception as error:  # each runtime has classes of its own, direct children of this
        raise UserError(f'{path}: {runtime} cannot read it: {one_line(error)}') from error
