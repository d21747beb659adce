"""Categories of prepared listings through an engine: what the server answers and what training's report measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from item.adapters.adapter import Adapter
from item.adapters.head import Category, Features, Heads
from item.adapters.predict import Prediction, Specialist, predict
from item.engine.interface import Engine
from item.preprocessing.prepared import Prepared


def predict_prepared(
    engine: Engine,
    heads: Heads,
    prepared: Sequence[Prepared],
    adapters: Mapping[Category, Adapter],
    *,
    top_k: int,
    start: Category = (),
    before_second_pass: Callable[[], None] = lambda: None,
) -> list[Prediction]:
    """The predictions of N listings; see `item.adapters.predict`.

    Args:
        adapters: by the top level that they are for (`Bank.specialists`): looked up once, whatever is loaded meanwhile.
        before_second_pass: may raise, to stop there.
    """
    if not prepared:
        return []
    features = engine.features_of(prepared)
    by_name = {adapter.name: adapter for adapter in adapters.values()}
    specialists = {
        category: Specialist(name=adapter.name, head=head)
        for category, adapter in adapters.items()
        if adapter.heads is not None and (head := adapter.heads.of(category)) is not None
    }

    def adapted(pairs: Sequence[tuple[int, str]]) -> Features:
        before_second_pass()
        rows = [row for row, _ in pairs]
        named = [by_name[name] for _, name in pairs]
        return engine.adapt_features([prepared[row] for row in rows], features[rows], named)

    return predict(heads, features, specialists, adapted, top_k=top_k, start=start)
