"""Hypothesis strategies for what a state may hold."""

from __future__ import annotations

from hypothesis import strategies as st

# Long strings, repeated ones and long lists are what chunks are about: make them common.
long_texts = st.sampled_from(["long " * 60, "ünïcode " * 40, "\ud800 surrogate " * 30, "x" * 255])
texts = st.one_of(st.text(max_size=20), st.text(st.characters(), max_size=5), long_texts)
keys = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.just("$"))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**63, max_value=2**200),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=40), st.dictionaries(keys, inner, max_size=6)),
    max_leaves=60,
)
hashables = st.recursive(
    st.one_of(
        st.integers(),
        st.text(max_size=9),
        st.binary(max_size=9),
        st.uuids(),
        st.decimals(allow_nan=False),
        st.datetimes().map(lambda moment: moment.replace(fold=0)),
        st.dates(),
        st.times().map(lambda moment: moment.replace(fold=0)),
        st.timedeltas(),
    ),
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)),
    max_leaves=6,
)
values = st.recursive(
    st.one_of(scalars, hashables),
    lambda inner: st.one_of(
        st.lists(inner, max_size=12),
        st.dictionaries(st.one_of(keys, hashables), inner, max_size=5),
        st.sets(hashables, max_size=4),
        st.tuples(inner, inner),
    ),
    max_leaves=30,
)


def exact(value: object) -> str:
    """A text that differs for 1, True and 1.0, for -0.0 and 0.0, and for other orders of keys."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}{sorted(exact(item) for item in value)}"
    if isinstance(value, dict):
        return f"dict{[(exact(key), exact(item)) for key, item in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[exact(item) for item in value]}"
    return f"{type(value).__name__}:{value!r}"
