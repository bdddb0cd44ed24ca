"""One measurement of the benchmark, in a process of its own: a peak of memory is a process's.

``python -m support.benchmarking.case CASE.json``, in tools/, reads a :class:`Case` and writes its
result, a JSON object, as the last line of stdout.
"""

import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

SIZES = {'t': 'tiny', 's': 'small', 'b': 'base', 'l': 'large'}
VARIANT_LETTERS = {
    f'{family.lower()}-{letter}': (family, arch)
    for family in ('RMT', 'RAVLT', 'MAViT')
    for letter, arch in SIZES.items()
}
"""Our backbones by name: type and ``arch``."""
RIVALS = {
    'swin-t': dict(type='mmdet.SwinTransformer', depths=(2, 2, 6, 2)),
    'swin-s': dict(type='mmdet.SwinTransformer', depths=(2, 2, 18, 2)),
    'resnet-50': dict(type='mmdet.ResNet', depth=50),
    'resnet-101': dict(type='mmdet.ResNet', depth=101),
    'pvtv2-b1': dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=64),
    'pvtv2-b2': dict(
        type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=[3, 4, 6, 3]
    ),
    'convnext-t': dict(type='mmpretrain.ConvNeXt', arch='tiny', out_indices=(0, 1, 2, 3)),
}


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: a key of VARIANT_LETTERS or RIVALS, or ``matrix`` (the machine's matrix rate).
        attention: a name that the backbone's family has; empty for a rival.
        mode: 'inference', 'training' (forward and backward), or 'training-cp' (with_cp).
        part: 'all', 'frame' (all but the blocks); of RMT also 'axial' (the stages of axial
            attention with the stem), 'attention' (the whole attention of the first stage that has
            it, alone).
        height: of the image; so is width.
        dtype: 'float32', or 'bfloat16' / 'float16' under autocast.
        seconds: no further repetition starts after so long.
    """

    model: str
    attention: str = ''
    mode: str = 'inference'
    part: str = 'all'
    height: int = 800
    width: int = 1280
    batch: int = 1
    dtype: str = 'float32'
    device: str = 'cpu'
    threads: int = 0
    repeats: int = 5
    seconds: float = 20
    operators: bool = False


def main() -> None:
    case = Case(**json.loads(Path(sys.argv[1]).read_text()))
    if case.threads:
        torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    result = matrix_rate(case) if case.model == 'matrix' else measure(case)
    print(json.dumps(asdict(case) | machine(case.device) | result))


def machine(device: str) -> dict:
    """The device's name, threads and versions."""
    name = torch.cuda.get_device_name() if device == 'cuda' else _processor()
    return dict(machine=name, used_threads=torch.get_num_threads(), torch=torch.__version__)


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def matrix_rate(case: Case) -> dict:
    """Multiply-adds per second of a large matrix product, the best of many."""
    size = 8192 if case.device == 'cuda' else 2048
    a = torch.randn(size, size, device=case.device, dtype=getattr(torch, case.dtype))
    times = timed(lambda: a @ a, case, repeats=max(10, case.repeats))
    return dict(rate=size**3 / min(times), times=times)


def measure(case: Case) -> dict:
    """Times, peak memory and multiply-adds of a forward, or of a forward and a backward pass."""
    forward, model = build(case)
    training = case.mode != 'inference'
    model.train(training)
    half = case.dtype != 'float32'
    amp = torch.autocast(case.device, getattr(torch, case.dtype)) if half else nullcontext()

    def run() -> None:
        with nullcontext() if training else torch.inference_mode():
            with amp:
                features = forward()
            if training:
                model.zero_grad(set_to_none=False)
                sum(f.float().mean() for f in features).backward()

    before = memory(case.device)
    run()  # the warm-up as well: the first pass reaches the peak
    peak = memory(case.device) - before
    times = timed(run, case, case.repeats)
    result = dict(
        timing(times, case.batch),
        times=times,
        peak_bytes=peak,
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=multiply_adds(case),
    )
    if case.operators:
        result['operator_shares'] = operators(run)
    return result


def timing(times: list[float], batch: int) -> dict:
    """What is told of the seconds of each run."""
    median = statistics.median(times)
    return dict(
        seconds_median=median,
        seconds_min=min(times),
        seconds_max=max(times),
        runs=len(times),
        images_per_second=batch / median,
    )


def timed(run: Callable[[], object], case: Case, repeats: int) -> list[float]:
    """Seconds of each run, at least three unless one takes longer than all may."""
    synchronize = torch.cuda.synchronize if case.device == 'cuda' else lambda: None
    times, start = [], time.perf_counter()
    while len(times) < repeats:
        synchronize()
        begin = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - begin)
        spent = time.perf_counter() - start
        if spent > case.seconds and (len(times) >= 3 or spent > 3 * case.seconds):
            break
    return times


def memory(device: str) -> int:
    """Peak memory so far, in bytes: of the device's tensors, or of this process."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    # not getrusage's ru_maxrss: a process starts with that of the one it was started from
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) * 1024


def build(case: Case) -> tuple[Callable[[], tuple], nn.Module]:
    """A function that runs the model on random input, and the model, whose weights are there."""
    model = build_model(case).to(case.device)
    model.eval()
    if case.part == 'attention':
        stage = next(i for i, axial in enumerate(model.variant.axial) if not axial)
        scale, width = 2 ** (stage + 2), model.variant.channels[stage]
        H, W = -(-case.height // scale), -(-case.width // scale)
        layer, attention = model.layers[stage].blocks[0].retention, model.layers[stage].attention
        x = torch.randn(case.batch, H, W, width, device=case.device)
        return lambda: (layer(x, attention.prepare(x)),), layer
    image = torch.randn(case.batch, 3, case.height, case.width, device=case.device)
    small = torch.randn(1, 3, 64, 64, device=case.device)
    with torch.no_grad():
        model(small)  # libraries load, the kernel compiles: neither counts as memory
    if case.mode != 'inference':
        sum(f.mean() for f in model(small)).backward()  # nor do the gradients of the weights
    return lambda: model(image), model


def build_model(case: Case) -> nn.Module:
    from mmengine.registry import MODELS, init_default_scope

    if case.model in VARIANT_LETTERS:
        import backbone

        family, arch = VARIANT_LETTERS[case.model]
        indices = range(4)
        if case.part == 'axial':
            indices = [i for i, axial in enumerate(backbone.VARIANTS[arch].axial) if axial]
        with_cp = case.mode == 'training-cp'
        options = dict(arch=arch, out_indices=indices, attention=case.attention, with_cp=with_cp)
        model = MODELS.build(dict(type=family, **options))
        for stage in model.layers if case.part == 'frame' else ():
            stage.blocks = nn.ModuleList()
        return model
    init_default_scope('mmdet')
    return MODELS.build(RIVALS[case.model])


def multiply_adds(case: Case) -> int:
    """Of one forward pass, every matrix product and convolution, counted without computing."""
    from dataclasses import replace

    from torch.utils.flop_counter import FlopCounterMode

    attention = case.attention and 'naive'  # the plain formula shows every product
    forward, _ = build(replace(case, device='meta', attention=attention, mode='inference'))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() // 2


def operators(run: Callable[[], None]) -> dict[str, float]:
    """Share of the time by kind of operator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
    shares: dict[str, float] = {}
    for event in profile.key_averages():
        spent = event.self_device_time_total or event.self_cpu_time_total
        kind = operator_kind(event.key)
        shares[kind] = shares.get(kind, 0) + spent
    total = sum(shares.values())
    return {kind: spent / total for kind, spent in shares.items()}


def operator_kind(name: str) -> str:
    """The kind that an operator's time is counted under."""
    kinds = {
        'attention': ('attention', 'softmax', 'bmm'),
        'linear': ('mm', 'linear'),
        'convolution': ('conv', 'depthwise'),
        'norm': ('norm',),
        'activation': ('gelu', 'relu'),
        'copy': ('copy', 'clone', 'contiguous', 'cat', 'flip', 'roll', 'stack'),
        'sum and product': ('add', 'mul', 'sub', 'div'),
    }
    for kind, words in kinds.items():
        if any(word in name.lower() for word in words):
            return kind
    return 'other'


if __name__ == '__main__':
    main()
