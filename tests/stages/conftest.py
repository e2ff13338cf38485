from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgnas.stages import finishing


@pytest.fixture(scope="module")
def weights_alone() -> Iterator[None]:
    """Export nothing but the weights: the other formats take seconds and are not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing, "FORMATS", {})
        yield
