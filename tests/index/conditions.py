"""Filters and products that are hard on them, and what a filter means, one product at a time."""

from __future__ import annotations

from hypothesis import strategies as st

from index.filters import All, AnyOf, Categorised, Equal, Filter, In, Not, Range, Under, Value
from index.product import Product

NAMES = ["colour", "size", "größe", "category", "group", "coded:size", "numeric:size", " ", "a.b\n"]
TEXTS = ["red", "Red", "", "1", "1.0", "true", "True", "ü", '["red"]', 'a "b", c\\', "\0"]
NUMBERS = [0.0, -0.0, 1.0, 1, 1.5, -3.0, 2.0**53, 1e300, 5e-324]


def passes(condition: Filter, product: Product) -> bool:
    """The oracle, from the contract's words."""
    match condition:
        case All(conditions):
            return all(passes(child, product) for child in conditions)
        case AnyOf(conditions):
            return any(passes(child, product) for child in conditions)
        case Not(negated):
            return not passes(negated, product)
        case Equal(attribute, value):
            return typed(value) in held(product, attribute)
        case In(attribute, values):
            return any(typed(value) in held(product, attribute) for value in values)
        case Range(attribute, at_least, above, at_most, below):
            number = product.attributes.get(attribute)
            return (
                isinstance(number, int | float)
                and not isinstance(number, bool)
                and (at_least is None or number >= at_least)
                and (above is None or number > above)
                and (at_most is None or number <= at_most)
                and (below is None or number < below)
            )
        case Under(category):
            return product.category[: len(category)] == category
        case Categorised():
            return bool(product.category)


def typed(value: Value) -> tuple[str, Value]:
    """A value that equals no value of another type."""
    return ("bool" if isinstance(value, bool) else "str" if isinstance(value, str) else "number", value)


def held(product: Product, attribute: str) -> set[tuple[str, Value]]:
    """What an attribute equals or contains."""
    value = product.attributes.get(attribute)
    if value is None:
        return set()
    return set(map(typed, value)) if isinstance(value, list) else {typed(value)}


names = st.sampled_from(NAMES) | st.text(min_size=1, max_size=3)
numbers = st.sampled_from(NUMBERS) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.sampled_from(TEXTS) | st.text(max_size=3)
scalars = st.booleans() | numbers | texts
paths = st.lists(st.sampled_from(["A", "B", "C/D"]), max_size=3).map(tuple)
products = st.builds(
    Product,
    product_id=st.just("p"),
    category=paths,
    group_id=st.none() | st.sampled_from(["g", "h", ""]) | st.text(max_size=2),
    attributes=st.dictionaries(names, scalars | st.lists(texts, max_size=4), max_size=4),
)
bounds = st.fixed_dictionaries({}, optional={"above": numbers, "below": numbers}) | st.fixed_dictionaries(
    {}, optional={"at_least": numbers, "at_most": numbers}
)
leaves = st.one_of(
    st.builds(Equal, names, scalars),
    st.builds(In, names, st.lists(scalars, min_size=1, max_size=5).map(tuple)),
    st.builds(lambda name, given: Range(name, **given), names, bounds.filter(bool)),
    st.builds(Under, paths.filter(bool)),
    st.builds(Categorised),
)
trees = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.builds(Not, children),
        st.builds(All, st.lists(children, min_size=1, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(children, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)
