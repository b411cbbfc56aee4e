"""Operations are found by name."""

import pytest

from stabcheck.errors import UsageError
from stabcheck.operations import operation


def test_an_unknown_operation_is_told_with_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown operation 'softmx'; stabcheck knows cross_entropy, logsumexp, .*temperature_softmax"):
        operation("softmx")
