"""Changes of weights files, by seeds: bytes, the pickle inside, names, shapes, types, code."""

import io
import os
import random
import zipfile

import torch
from safetensors.torch import save
from torch import Tensor

FORMATS = ('zip', 'legacy', 'safetensors')


def packed(content: dict, layout: str) -> bytes:
    """The bytes of a weights file in a format."""
    if layout == 'safetensors':
        return save({n: t.contiguous() for n, t in content['state_dict'].items()})
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=layout == 'zip')
    return out.getvalue()


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, delete, cut, or repeat some bytes; most of them where the structure is."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        span = rng.choice([len(data), min(len(data), 40_000)])
        at = rng.randrange(span) if rng.random() < 0.7 else len(data) - 1 - rng.randrange(span)
        size = rng.choice([1, 1, 2, 8, 100])
        what = rng.randrange(5)
        if what == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at:at] = rng.randbytes(size)
        elif what == 2:
            del data[at : at + size]
        elif what == 3:
            del data[at:]
        else:
            data[at:at] = data[at : at + size]
        if not data:
            break
    return bytes(data)


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change the pickle of a zip file, and store it with a right checksum."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith('data.pkl') and rng.random() < 0.5:  # instructions for instructions
                content = bytearray(content)
                for _ in range(rng.choice([1, 3, 10])):
                    content[rng.randrange(len(content))] = rng.choice(
                        b'cbR()}]NJKXqhtus.\x81\x85\x86Q'
                    )
            elif name.endswith('data.pkl'):
                content = mutate_bytes(content, rng)
            new.writestr(name, bytes(content))
    return out.getvalue()


def mutate_weights(weights: dict, rng: random.Random) -> dict:
    """One change that makes the weights wrong."""
    weights = dict(weights)
    name = rng.choice([
        n for n in weights
        if 'num_batches' not in n and 'extra' not in n and ('.blocks.' in n or '.proj.' in n)
    ])  # fmt: skip
    tensor = weights.pop(name)
    what = rng.randrange(12)
    if what == 1:
        weights[name[: rng.randrange(len(name))]] = tensor
    elif what == 2:
        weights[name.replace('.', rng.choice(['', '..', '/', '_']), 1)] = tensor
    elif what == 3:
        weights[name] = tensor.flatten()[: rng.randrange(tensor.numel())].clone()
    elif what == 4:
        weights[name] = tensor[None]
    elif what == 5:
        weights[name] = tensor.to(
            rng.choice([torch.int64, torch.bool, torch.complex64, torch.uint8])
        )
    elif what == 6:
        weights[name] = rng.choice([None, 3, 'text', [tensor], {'x': tensor}])
    elif what == 7:
        weights[name] = tensor.to_sparse()
    elif what == 8:
        weights[name] = torch.ones(1).expand(tensor.shape) if tensor.numel() > 1 else tensor[None]
    elif what == 9:
        weights = {
            f'{rng.choice(["backbon.", "module", "encoder."])}{n}': t for n, t in weights.items()
        }
    elif what == 10:
        weights[rng.choice([3, (1, 2), 1.5, b'x'])] = tensor
    elif what == 11:
        extra = name.rsplit('.', 2)[0]
        weights.update({name: tensor, f'{extra}.{rng.random()}': tensor})
    return weights


def mutate_meta(content: dict, rng: random.Random) -> dict:
    """A value of any type at any place beside the weights."""
    values = [None, 5, -1.5, 'text', b'bytes', [1], (2,), {'x': 1}, {3: {}}, torch.ones(2), [['a']]]
    content = {**content, 'message_hub': {'runtime_info': {}}}
    node = content
    for _ in range(rng.randrange(3)):
        inner = [name for name in node if name != 'state_dict' and isinstance(node[name], dict)]
        if inner:
            name = rng.choice(inner)
            node[name] = dict(node[name])
            node = node[name]
    names = [n for n in node if n != 'state_dict'] + ['rmt', 'cfg', 'config', 'CLASSES', 'PALETTE']
    node[rng.choice(names)] = rng.choice(values)
    return content


class Runs:
    """Pickles as something that makes a file."""

    def __init__(self, marker: os.PathLike, rng: random.Random) -> None:
        make = f'open({str(marker)!r}, "w").close()'
        self.call = rng.choice([
            (os.system, (f'touch {marker}',)), (eval, (make,)), (exec, (make,)),
            (open, (str(marker), 'w')), (os.mkdir, (str(marker),)),
        ])  # fmt: skip

    def __reduce__(self) -> tuple:
        return self.call


def with_code(content: dict, rng: random.Random, marker: os.PathLike) -> dict:
    """Code as a weight, beside the weights, or as a config's text."""
    runs = Runs(marker, rng)
    text = f"model = dict(type='os.system', command='touch {marker}')"
    weights = content['state_dict']
    return rng.choice([
        {**content, 'state_dict': {**weights, next(iter(weights)): runs}},
        {**content, 'extra': [{'deep': (runs,)}]},
        {**content, 'meta': runs},
        {**content, 'meta': {**content.get('meta', {}), 'cfg': text, 'config': text}},
        {**content, 'message_hub': {'runtime_info': {'cfg': text}}},
    ])  # fmt: skip


def mutated_file(
    content: dict, rng: random.Random, marker: os.PathLike, what: str = ''
) -> tuple[str, bytes]:
    """What was changed, and the bytes of the file; ``marker`` is there if code of it ran."""
    what = what or rng.choice(['bytes', 'pickle', 'weights', 'meta', 'code'])
    if what == 'bytes':
        return what, mutate_bytes(packed(content, rng.choice(FORMATS)), rng)
    if what == 'pickle':
        return what, mutate_pickle(packed(content, 'zip'), rng)
    if what == 'weights':
        content = {**content, 'state_dict': mutate_weights(content['state_dict'], rng)}
    elif what == 'meta':
        content = mutate_meta(content, rng)
    else:
        content = with_code(content, rng, marker)
    return what, packed(content, rng.choice(FORMATS[:2]))


def assert_arrived(ours: dict[str, Tensor], given: dict[str, Tensor], but: str = '\n') -> None:
    """Every tensor of the model is the file's; counters, and names with ``but``, may lack there."""
    for name, tensor in ours.items():
        if name not in given:
            assert name.endswith('.num_batches_tracked') or but in name, name
            continue
        expected = given[name].to(tensor.dtype)
        assert torch.equal(tensor, expected) or expected.isnan().any(), name
