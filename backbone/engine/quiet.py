"""Fewer lines in the log, without losing what they say."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class _PerParameter(logging.Filter):
    """Makes mmengine's line a parameter and setting one for level DEBUG, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if found := re.match(r'paramwise_options -- .*:(\w+=.*)', record.getMessage()):
            if '_mult=' not in found[1]:  # said once more as what they result in
                self.settings[found[1]] += 1
            record.levelno, record.levelname = logging.DEBUG, 'DEBUG'
        return True


@contextmanager
def parameters_in_one_line(logger: logging.Logger, usual: dict) -> Iterator[None]:
    """Inside, what ``paramwise_cfg`` does is counted, and named a parameter at level DEBUG.

    Args:
        logger: where mmengine says it.
        usual: the optimizer's settings in the config, which a parameter may have as well.
    """
    count = _PerParameter()
    logger.addFilter(count)
    try:
        yield
    finally:
        logger.removeFilter(count)
    for key, value in usual.items():
        count.settings.pop(f'{key}={value}', None)
    if count.settings:
        counts = ', '.join(f'{name}: {n} parameters' for name, n in sorted(count.settings.items()))
        logger.info(f'paramwise_cfg: {counts} (log_level=DEBUG names them).')
