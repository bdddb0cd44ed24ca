"""The split of data that has none."""

import pytest
from support.own_data.splitting import choose_val


def test_every_class_of_two_images_or_more_is_in_both() -> None:
    classes = [{'common'} for _ in range(46)] + [{'common', 'rare'}, {'rare'}]
    for seed in range(20):
        val = choose_val(classes, seed)
        assert len(val) == 10
        for name in ('common', 'rare'):
            assert {i in val for i, held in enumerate(classes) if name in held} == {True, False}


def test_a_class_of_one_image_is_trained() -> None:
    classes = [{'a'}, {'a'}, {'a'}, {'b'}, {'a'}]
    assert all(3 not in choose_val(classes, seed) for seed in range(20))


def test_the_split_is_the_same_every_time() -> None:
    classes = [{i % 7, i % 3} for i in range(50)]
    assert choose_val(classes) == choose_val(classes)
    assert choose_val(classes) != choose_val(classes, seed=1)


@pytest.mark.parametrize('number', [2, 3, 5, 48, 6000])
def test_a_fifth_is_kept_but_not_more_than_a_thousand(number: int) -> None:
    val = choose_val([{'a'}] * number)
    assert len(val) == min(max(1, round(number / 5)), 1000)


def test_images_without_objects_go_anywhere() -> None:
    assert len(choose_val([set()] * 10)) == 2
    assert len(choose_val([{'a'}, {'b'}])) == 1  # something must be left to validate on
