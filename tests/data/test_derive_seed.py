from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgnas.seeds import derive_seed

PART = st.one_of(st.integers(), st.text(alphabet="ab1:", max_size=4))


@given(st.lists(PART, max_size=4), st.lists(PART, max_size=4))
def test_a_seed_is_a_63_bit_function_of_its_parts_and_of_nothing_else(one, other):
    assert 0 <= derive_seed(*one) < 2**63
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


def test_seeds_never_change_between_versions():
    assert derive_seed(0, "order", 3) == 6520630738536837906
