"""Categories by the model's own heads: one batch by the model alone, then one of the likely categories' adapters."""

from __future__ import annotations

import time
from collections.abc import Sequence

from deploy.adapters import find_adapter
from deploy.encoding import INPUT_FIELDS
from deploy.errors import Deadline, InvalidRequestError, RequestError, attempt
from deploy.messages import category_message, error_message, listing_of
from item.adapters.head import Category, Heads
from item.adapters.predict import Prediction
from item.catalog.listing import Listing
from item.engine.categories import predict_prepared
from item.engine.interface import Engine
from item.errors import ListingError
from item.preprocessing.prepared import Prepared
from item.v1 import item_pb2


def predict_by_heads(
    engine: Engine,
    heads: Heads,
    inputs: Sequence[item_pb2.Input],
    top_k: int,
    start: Category,
    deadline: Deadline,
) -> item_pb2.PredictCategoryResponse:
    """The most probable paths under `start` for each input."""
    begun = time.perf_counter()
    ready = prepare(engine, inputs)
    prepared = [one for one in ready if isinstance(one, Prepared)]
    prepared_s = time.perf_counter()
    deadline.check()
    adapters = engine.adapters.specialists()
    found = predict_prepared(
        engine, heads, prepared, adapters, top_k=top_k, start=start, before_second_pass=deadline.check
    )
    predictions = iter(found)
    return item_pb2.PredictCategoryResponse(
        predictions=[
            item_pb2.CategoryPrediction(error=error_message(one))
            if isinstance(one, RequestError)
            else prediction_message(next(predictions))
            for one in ready
        ],
        times=item_pb2.StageTimes(prepare_s=prepared_s - begun, encode_s=time.perf_counter() - prepared_s),
    )


def prepare(engine: Engine, inputs: Sequence[item_pb2.Input]) -> list[Prepared | RequestError]:
    """Inputs made ready, or why they are refused."""

    def read(message: item_pb2.Input, field: str) -> Listing:
        listing = listing_of(message, field)
        if message.HasField("adapter"):
            find_adapter(engine, message.adapter, f"{field}.adapter")
            raise InvalidRequestError(
                f"{field}.adapter", f"{message.adapter!r}: the model's heads choose the adapter; leave it unset"
            )
        return listing

    listings = [attempt(read, message, f"inputs[{row}]") for row, message in enumerate(inputs)]
    ready = iter(engine.prepare_all([one for one in listings if isinstance(one, Listing)]))
    outcomes: list[Prepared | RequestError] = []
    for row, one in enumerate(listings):
        outcome = one if isinstance(one, RequestError) else next(ready)
        if isinstance(outcome, ListingError):
            name = INPUT_FIELDS.get(outcome.field, outcome.field)
            outcome = InvalidRequestError(f"inputs[{row}].{name}", outcome.reason)
        outcomes.append(outcome)
    return outcomes


def prediction_message(prediction: Prediction) -> item_pb2.CategoryPrediction:
    """A prediction by heads as a message."""
    return item_pb2.CategoryPrediction(
        paths=[category_message(path, probabilities) for path, probabilities in prediction.paths],
        abstained=prediction.abstained,
        method=item_pb2.PREDICTION_METHOD_HEAD,
        adapter=prediction.adapter,
        unknown=prediction.unknown,
    )
