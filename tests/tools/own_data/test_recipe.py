"""What the recipe makes of a data set and a machine."""

from dataclasses import replace

import pytest
from support.own_data.recipe import BASES, DEPTH, Case, Machine, recipe, seconds_an_image

LAPTOP, GPU = Machine(False, 2), Machine(True, 8, 24 * 2**30)
CASE = Case('retinanet', 'tiny', 48, 12, LAPTOP)


def value(case: Case, name: str) -> object:
    return recipe(case)[name].value


@pytest.mark.parametrize('machine', [LAPTOP, GPU], ids=str)
@pytest.mark.parametrize('images', [8, 60, 600, 6000, 60000])
@pytest.mark.parametrize('start', ['nothing', 'backbone', 'detector', 'again'])
def test_the_warm_up_is_a_small_share_and_validation_comes_now_and_then(
    machine: Machine, images: int, start: str
) -> None:
    chosen = recipe(replace(CASE, machine=machine, images=images, start=start))
    steps = chosen['steps'].value
    assert steps >= 500
    assert chosen['warmup'].value <= steps / 10
    assert 2 <= steps // chosen['val_every'].value <= 11
    assert chosen['patience'].value * chosen['val_every'].value <= steps
    assert all(choice.why for choice in chosen.values())


@pytest.mark.parametrize('head', BASES)
@pytest.mark.parametrize('arch', DEPTH)
def test_a_cpu_is_asked_for_the_minutes_that_there_are(head: str, arch: str) -> None:
    case = replace(CASE, head=head, arch=arch, images=6000, minutes=200)
    chosen = recipe(case)
    images = chosen['steps'].value * chosen['batch'].value
    minutes = images * seconds_an_image(case, chosen['side'].value) / 60
    assert minutes < 200
    if chosen['steps'].value > 500:
        assert minutes > 150
        assert value(replace(case, minutes=400), 'steps') > 1.8 * chosen['steps'].value
    else:
        assert DEPTH[arch] > 1


def test_more_cores_and_smaller_images_make_more_steps() -> None:
    case = replace(CASE, images=6000)
    assert value(replace(case, machine=Machine(False, 8)), 'steps') > 2 * value(case, 'steps')
    assert value(replace(case, side=512), 'steps') < value(case, 'steps') / 2
    assert value(replace(case, side=512), 'side') == 512


def test_small_gpus_accumulate_to_the_same_step() -> None:
    for gigabytes in (4, 8, 16, 80):
        chosen = recipe(replace(CASE, machine=Machine(True, 8, gigabytes * 2**30)))
        assert chosen['batch'].value * chosen['accumulate'].value == 8
    assert chosen['accumulate'].value == 1


def test_first_layers_are_kept_where_they_have_learnt() -> None:
    assert value(CASE, 'frozen') == -1
    for start in ('backbone', 'detector'):
        assert value(replace(CASE, start=start), 'frozen') == 1
        assert value(replace(CASE, start=start, schooled=False), 'frozen') == -1
    assert value(replace(CASE, start='again'), 'frozen') == -1


def test_heads_are_as_wide_as_those_in_the_file() -> None:
    assert value(CASE, 'narrow')
    assert not value(replace(CASE, machine=GPU), 'narrow')
    assert value(replace(CASE, machine=GPU, start='again', full_width=False), 'narrow')
    assert not value(replace(CASE, start='detector', full_width=True), 'narrow')


def test_known_weights_are_changed_slowly() -> None:
    rates = [value(replace(CASE, start=s), 'rate') for s in ('nothing', 'again', 'detector')]
    assert rates == sorted(rates, reverse=True)
    young = replace(CASE, start='detector', schooled=False)
    assert rates[0] > value(young, 'rate') > rates[2]


def test_a_large_val_set_takes_no_more_than_its_share() -> None:
    few, many = (replace(CASE, val_images=number) for number in (12, 5000))
    assert value(few, 'steps') // value(few, 'val_every') == 10
    assert value(many, 'steps') // value(many, 'val_every') == 2
    on_gpu = replace(many, machine=GPU)
    assert value(on_gpu, 'steps') // value(on_gpu, 'val_every') == 10
