"""Requests and answers without a network: what each rpc does, and what it says to bad input."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploy.errors import (
    Deadline,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    RequestError,
    Status,
)
from deploy.handlers import Handlers, Limits
from index.about import About
from index.store import Store
from item.catalog.listing import Listing
from item.engine.interface import Engine
from item.errors import ConfigError, SpaceError
from item.v1 import item_pb2
from tests.deploy.serving import png, shop, write_index

WIDTH = 32
FOREVER = Deadline()


@pytest.fixture(scope="module")
def handlers(served_engine: Engine, served_store: Store) -> Handlers:
    return Handlers(served_engine, {"default": served_store}, Limits(max_inputs=40, max_k=50))


def values(vector: item_pb2.Vector) -> np.ndarray:
    return np.frombuffer(vector.values, "<f4")


def embed(handlers: Handlers, *inputs: item_pb2.Input, dimensions: int | None = None) -> item_pb2.EmbedResponse:
    return handlers.embed(item_pb2.EmbedRequest(inputs=inputs, dimensions=dimensions), "me", FOREVER)


def search(handlers: Handlers, *queries: item_pb2.Query, k: int | None = None) -> list[item_pb2.SearchResult]:
    return list(handlers.search(item_pb2.SearchRequest(queries=queries, k=k), "me", FOREVER).results)


def part(**source: object) -> item_pb2.Query:
    return item_pb2.Query(parts=[item_pb2.QueryPart(**source)])  # type: ignore[arg-type]


def vector(space: str, row: object) -> item_pb2.Vector:
    return item_pb2.Vector(values=np.asarray(row, "<f4").tobytes(), space=space)


def ids(result: item_pb2.SearchResult) -> list[str]:
    return [hit.product.product_id for hit in result.hits]


class TestEmbed:
    def test_vectors_are_the_engines(self, handlers: Handlers, served_engine: Engine) -> None:
        listing = shop()[0]
        image = listing.images[0].data
        response = embed(
            handlers,
            item_pb2.Input(text=listing.title, description=listing.description, image=image),
            item_pb2.Input(text=listing.title),
            item_pb2.Input(image=image),
        )
        alone = [listing, Listing(title=listing.title), Listing(images=listing.images)]
        expected = np.concatenate([served_engine.encode([one]).vectors for one in alone])
        given_back = np.stack([values(result.vector) for result in response.results])
        np.testing.assert_allclose(given_back, expected, atol=1e-5)
        assert np.abs(expected[1] - expected[2]).max() > 0.01
        assert {result.vector.space for result in response.results} == {served_engine.space}
        assert response.times.prepare_s > 0
        assert response.times.encode_s > 0

    def test_bad_inputs_leave_their_neighbours_alone(self, handlers: Handlers) -> None:
        huge = io.BytesIO()
        Image.new("1", (10_000, 5_001)).save(huge, "PNG")
        bad = {
            "inputs[1]": item_pb2.Input(),
            "inputs[2]": item_pb2.Input(text=" \n\t", description=""),
            "inputs[3].image": item_pb2.Input(text="fine", image=b"no picture"),
            "inputs[4].image": item_pb2.Input(image=png("red")[:60]),
            "inputs[5].image": item_pb2.Input(text="fine", image=b""),
            "inputs[6].image": item_pb2.Input(image=huge.getvalue()),
            "inputs[7].text": item_pb2.Input(text="\u200b"),
        }
        response = embed(handlers, item_pb2.Input(text="a mug"), *bad.values(), item_pb2.Input(text="a shoe"))
        errors = [result.error for result in response.results[1:-1]]
        assert [error.field for error in errors] == list(bad)
        assert {error.code for error in errors} == {Status.INVALID_ARGUMENT}
        assert all(error.message for error in errors)
        for text, result in (("a mug", response.results[0]), ("a shoe", response.results[-1])):
            alone = embed(handlers, item_pb2.Input(text=text)).results[0]
            np.testing.assert_allclose(values(result.vector), values(alone.vector), atol=1e-5)

    def test_unknown_adapter_is_not_found(self, handlers: Handlers) -> None:
        first, second = embed(
            handlers, item_pb2.Input(text="a mug", adapter="shoes"), item_pb2.Input(text="a mug")
        ).results
        assert (first.error.code, first.error.field) == (Status.NOT_FOUND, "inputs[0].adapter")
        assert "'shoes'" in first.error.message
        assert second.HasField("vector")

    @given(dimensions=st.integers(1, WIDTH))
    @settings(max_examples=15)
    def test_fewer_dimensions_are_a_prefix_of_unit_norm(self, handlers: Handlers, dimensions: int) -> None:
        whole, shorter = (
            values(embed(handlers, item_pb2.Input(text="a red mug"), dimensions=number).results[0].vector)
            for number in (None, dimensions)
        )
        assert shorter.shape == (dimensions,)
        assert np.linalg.norm(shorter) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(shorter, whole[:dimensions] / np.linalg.norm(whole[:dimensions]), atol=1e-6)

    @pytest.mark.parametrize("dimensions", [0, -1, WIDTH + 1])
    def test_dimensions_out_of_range(self, handlers: Handlers, dimensions: int) -> None:
        with pytest.raises(InvalidRequestError, match=rf"^dimensions: {dimensions} is not within 1 to 32"):
            embed(handlers, item_pb2.Input(text="a mug"), dimensions=dimensions)

    @pytest.mark.parametrize("number", [0, 41])
    def test_number_of_inputs(self, handlers: Handlers, number: int) -> None:
        with pytest.raises(InvalidRequestError, match=rf"^inputs: {number} of them; give 1 to 40"):
            embed(handlers, *[item_pb2.Input(text="a mug")] * number)

    def test_nothing_is_encoded_after_the_deadline(self, handlers: Handlers) -> None:
        with pytest.raises(DeadlineError):
            handlers.embed(item_pb2.EmbedRequest(inputs=[item_pb2.Input(text="a")]), "me", Deadline.after(-1))

    def test_window_of_a_stream(self, handlers: Handlers) -> None:
        requests = [
            item_pb2.EmbedStreamRequest(input=item_pb2.Input(text="a mug")),
            item_pb2.EmbedStreamRequest(),
            item_pb2.EmbedStreamRequest(input=item_pb2.Input(text="a mug"), dimensions=99),
            item_pb2.EmbedStreamRequest(input=item_pb2.Input(text="a mug"), dimensions=4),
        ]
        results = [response.result for response in handlers.embed_window(requests, "me", FOREVER)]
        assert len(values(results[0].vector)) == WIDTH
        assert [result.error.field for result in results[1:3]] == ["input", "dimensions"]
        assert len(values(results[3].vector)) == 4


class TestSearch:
    def test_the_same_listing_comes_first(self, handlers: Handlers) -> None:
        for listing in shop()[::7]:
            image = listing.images[0].data
            whole = item_pb2.Input(text=listing.title, description=listing.description, image=image)
            (result,) = search(handlers, part(input=whole), k=3)
            assert ids(result)[0] == listing.product_id
            assert result.hits[0].score == pytest.approx(1, abs=1e-5)
            assert result.plan == item_pb2.SEARCH_PLAN_EXACT

    def test_a_hit_tells_all_that_is_stored(self, handlers: Handlers, served_engine: Engine) -> None:
        (result,) = search(handlers, part(product_id="green-mug"), k=50)
        (hit,) = [hit for hit in result.hits if hit.product.product_id == "red-mug"]
        product = hit.product
        assert (product.title, list(product.category)) == ("red mug", ["Home", "Kitchen", "Mugs"])
        assert (product.group_id, product.images[0].reference) == ("group-mug", "images/red-mug.png")
        assert product.attributes["price"].number_value == 9.5
        assert product.attributes["in_stock"].WhichOneof("kind") == "bool_value"
        assert product.attributes["colour"].string_value == "red"
        assert list(product.attributes["sizes"].string_list.values) == ["S", "M"]
        assert not next(hit for hit in result.hits if hit.product.product_id == "red-shoe").product.HasField("group_id")
        assert result.space == served_engine.space

    def test_hits_are_those_of_brute_force(
        self, handlers: Handlers, served_store: Store, served_engine: Engine
    ) -> None:
        query = served_engine.encode([Listing(title="blue chair")]).vectors[0].astype(np.float64)
        stored = {listing.product_id: served_store.vector(listing.product_id) for listing in shop()}
        scores = {name: float(query @ row) for name, row in stored.items() if row is not None}
        (result,) = search(handlers, part(input=item_pb2.Input(text="blue chair")), k=30)
        assert len(set(scores.values())) > 20
        assert ids(result) == sorted(scores, key=lambda name: -scores[name])
        np.testing.assert_allclose(
            [hit.score for hit in result.hits], [scores[name] for name in ids(result)], atol=1e-5
        )

    def test_default_and_largest_k(self, handlers: Handlers) -> None:
        assert len(search(handlers, part(product_id="red-mug"))[0].hits) == 10
        assert len(search(handlers, part(product_id="red-mug"), k=50)[0].hits) == 29  # all but itself

    def test_products_left_out(self, handlers: Handlers) -> None:
        (plain,) = search(handlers, part(product_id="red-mug"), k=5)
        assert "red-mug" not in ids(plain)
        query = part(product_id="red-mug")
        query.leave_out_ids.extend([*ids(plain)[:2], "unknown"])
        (result,) = search(handlers, query, k=3)
        assert ids(result) == ids(plain)[2:]

    def test_a_vector_finds_what_its_input_finds(self, handlers: Handlers, served_engine: Engine) -> None:
        source = item_pb2.Input(text="white lamp", image=png("#eee"))
        found = embed(handlers, source).results[0].vector
        by_input, by_vector, by_longer = search(
            handlers, part(input=source), part(vector=found), part(vector=vector(found.space, 7 * values(found)))
        )
        assert ids(by_input) == ids(by_vector) == ids(by_longer)

    def test_parts_add_up_by_weight(self, handlers: Handlers, served_store: Store, served_engine: Engine) -> None:
        text = item_pb2.QueryPart(input=item_pb2.Input(text="yellow shirt"), weight=2)
        stored = item_pb2.QueryPart(product_id="black-chair")  # weight 1
        (combined,) = search(handlers, item_pb2.Query(parts=[text, stored]), k=29)
        words = served_engine.encode([Listing(title="yellow shirt")]).vectors[0]
        chair = served_store.vector("black-chair")
        assert chair is not None
        (expected,) = search(handlers, part(vector=vector(served_engine.space, 2 * words + chair)), k=30)
        assert "black-chair" not in ids(combined)
        assert ids(combined) == [name for name in ids(expected) if name != "black-chair"]
        (unweighted,) = search(handlers, part(vector=vector(served_engine.space, words + 9 * chair)), k=30)
        assert ids(expected) != ids(unweighted)

    def test_examples_draw_and_repel(self, handlers: Handlers, served_store: Store, served_engine: Engine) -> None:
        text = item_pb2.QueryPart(input=item_pb2.Input(text="yellow shirt"))
        liked = [
            item_pb2.QueryPart(product_id="black-chair", weight=3),
            item_pb2.QueryPart(input=item_pb2.Input(text="green lamp")),
        ]
        disliked = [item_pb2.QueryPart(product_id="red-shoe"), item_pb2.QueryPart(product_id="blue-shoe")]
        examples = item_pb2.Query(parts=[text], positive_examples=liked, negative_examples=disliked)
        alone = item_pb2.Query(positive_examples=liked)
        both, only_liked = search(handlers, examples, alone, k=30)

        shirt, lamp = served_engine.encode([Listing(title="yellow shirt"), Listing(title="green lamp")]).vectors
        chair, red, blue = (
            np.asarray(served_store.vector(name), np.float64) for name in ("black-chair", "red-shoe", "blue-shoe")
        )
        liked_mean = (3 * chair + lamp.astype(np.float64)) / 4
        wanted = shirt.astype(np.float64) + 0.75 * liked_mean - 0.15 * (red + blue) / 2  # Rocchio
        for result, query, left_out in (
            (both, wanted, {"black-chair", "red-shoe", "blue-shoe"}),
            (only_liked, liked_mean, {"black-chair"}),
        ):
            others = [listing.product_id for listing in shop() if listing.product_id not in left_out]
            scores = {name: query @ np.asarray(served_store.vector(name)) / np.linalg.norm(query) for name in others}
            assert ids(result) == sorted(others, key=lambda name: -scores[name])
            np.testing.assert_allclose(
                [hit.score for hit in result.hits], [scores[name] for name in ids(result)], atol=1e-5
            )
        assert ids(search(handlers, item_pb2.Query(parts=[text]), k=30)[0])[:5] != ids(both)[:5]

    def test_hits_pass_the_filter(self, handlers: Handlers) -> None:
        def equal(attribute: str, **value: Any) -> item_pb2.Filter:
            return item_pb2.Filter(
                equal=item_pb2.EqualFilter(attribute=attribute, value=item_pb2.AttributeValue(**value))
            )

        home = item_pb2.Filter(under=item_pb2.UnderFilter(category=["Home"]))
        in_stock = equal("in_stock", bool_value=True)
        cases: list[tuple[item_pb2.Filter, Callable[[Listing], bool]]] = [
            (home, lambda one: one.category[:1] == ("Home",)),
            (in_stock, lambda one: one.attributes["in_stock"] is True),
            (item_pb2.Filter(**{"not": home}), lambda one: one.category[:1] != ("Home",)),  # type: ignore[arg-type]
            (
                item_pb2.Filter(all=item_pb2.FilterList(filters=[home, in_stock, equal("sizes", string_value="M")])),
                lambda one: one.category[:1] == ("Home",) and one.attributes["in_stock"] is True,
            ),
            (equal("colour", string_value="purple"), lambda one: False),
        ]
        text = item_pb2.QueryPart(input=item_pb2.Input(text="red mug"))
        (ranking,) = search(handlers, item_pb2.Query(parts=[text]), k=30)
        results = search(handlers, *[item_pb2.Query(parts=[text], filter=condition) for condition, _ in cases], k=7)
        for result, (_, passes) in zip(results, cases, strict=True):
            passing = {listing.product_id for listing in shop() if passes(listing)}
            assert len(passing) < 30
            assert ids(result) == [name for name in ids(ranking) if name in passing][:7]
            assert result.plan == item_pb2.SEARCH_PLAN_EXACT

    def test_bad_queries_leave_their_neighbours_alone(self, handlers: Handlers, served_engine: Engine) -> None:
        space, good = served_engine.space, np.ones(WIDTH)
        several = [item_pb2.QueryPart(product_id="red-mug")]
        opposite = [
            item_pb2.QueryPart(vector=vector(space, good)),
            item_pb2.QueryPart(vector=vector(space, -good)),
        ]
        unset = item_pb2.QueryPart()
        words = [item_pb2.QueryPart(input=item_pb2.Input(text="a mug"))]
        by_price, price = item_pb2.Sort(attribute="price"), item_pb2.FacetRequest(attribute="price")
        no_bound = item_pb2.Filter(range=item_pb2.RangeFilter(attribute="price"))
        no_bound = item_pb2.Filter(all=item_pb2.FilterList(filters=[no_bound]))
        cases: list[tuple[item_pb2.Query, str, Status]] = [
            (item_pb2.Query(), "parts", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several * 17), "parts", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=opposite), "parts", Status.INVALID_ARGUMENT),
            (part(), "parts[0]", Status.INVALID_ARGUMENT),
            (part(input=item_pb2.Input()), "parts[0].input", Status.INVALID_ARGUMENT),
            (part(input=item_pb2.Input(image=b"x")), "parts[0].input.image", Status.INVALID_ARGUMENT),
            (part(input=item_pb2.Input(text="a", adapter="x")), "parts[0].input.adapter", Status.NOT_FOUND),
            (part(product_id="unknown"), "parts[0].product_id", Status.NOT_FOUND),
            (part(product_id=""), "parts[0].product_id", Status.NOT_FOUND),
            (part(vector=vector("f" * 64, good)), "parts[0].vector.space", Status.FAILED_PRECONDITION),
            (part(vector=vector("", good)), "parts[0].vector.space", Status.FAILED_PRECONDITION),
            (part(vector=vector(space, good[1:])), "parts[0].vector.values", Status.INVALID_ARGUMENT),
            (part(vector=vector(space, good * np.nan)), "parts[0].vector.values", Status.INVALID_ARGUMENT),
            (part(vector=vector(space, good * np.inf)), "parts[0].vector.values", Status.INVALID_ARGUMENT),
            (part(vector=vector(space, good * 0)), "parts[0].vector.values", Status.INVALID_ARGUMENT),
            (part(product_id="red-mug", weight=0), "parts[0].weight", Status.INVALID_ARGUMENT),
            (part(product_id="red-mug", weight=float("nan")), "parts[0].weight", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, filter=item_pb2.Filter()), "filter", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, filter=no_bound), "filter.all.filters[0].range", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, lexical_weight=0.5), "lexical_weight", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=words, lexical_weight=1.5), "lexical_weight", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, min_score=1.5), "min_score", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, min_score=float("nan")), "min_score", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, diversity=-1), "diversity", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, diversity=1, sort=by_price), "diversity", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, sort=item_pb2.Sort()), "sort.attribute", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, facets=[item_pb2.FacetRequest()]), "facets[0]", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, facets=[price] * 33), "facets", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, window=1), "window", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, window=10_001), "window", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, page_token="?"), "page_token", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, page_token="W10="), "page_token", Status.INVALID_ARGUMENT),
            (item_pb2.Query(positive_examples=[unset]), "positive_examples[0]", Status.INVALID_ARGUMENT),
            (item_pb2.Query(positive_examples=several * 65), "positive_examples", Status.INVALID_ARGUMENT),
            (item_pb2.Query(parts=several, negative_examples=[unset]), "negative_examples[0]", Status.INVALID_ARGUMENT),
            (
                item_pb2.Query(parts=several, negative_examples=several * 65),
                "negative_examples",
                Status.INVALID_ARGUMENT,
            ),
            (item_pb2.Query(negative_examples=several), "parts", Status.INVALID_ARGUMENT),
            (
                item_pb2.Query(parts=several, negative_examples=[item_pb2.QueryPart(input=item_pb2.Input())]),
                "negative_examples[0].input",
                Status.INVALID_ARGUMENT,
            ),
            (
                item_pb2.Query(parts=several, positive_examples=[item_pb2.QueryPart(product_id="red-mug", weight=-1)]),
                "positive_examples[0].weight",
                Status.INVALID_ARGUMENT,
            ),
        ]
        wide = Handlers(served_engine, handlers.collections, Limits(max_inputs=250))
        first, *results, last = search(
            wide, part(product_id="red-mug"), *(query for query, _, _ in cases), part(input=item_pb2.Input(text="mug"))
        )
        for row, ((_, field, status), result) in enumerate(zip(cases, results, strict=True), start=1):
            assert (result.error.field, result.error.code) == (f"queries[{row}].{field}", status)
            assert result.error.message
            assert not result.hits
        assert ids(first) == ids(search(wide, part(product_id="red-mug"))[0])
        assert ids(last) == ids(search(wide, part(input=item_pb2.Input(text="mug")))[0])

    @pytest.mark.parametrize("k", [0, -3, 51])
    def test_k_out_of_range(self, handlers: Handlers, k: int) -> None:
        with pytest.raises(InvalidRequestError, match=rf"^k: {k} is not within 1 to 50"):
            search(handlers, part(product_id="red-mug"), k=k)

    def test_number_of_queries_and_parts(self, handlers: Handlers) -> None:
        with pytest.raises(InvalidRequestError, match=r"^queries: 0 of them"):
            search(handlers)
        with pytest.raises(InvalidRequestError, match=r"^queries: 41 of them"):
            search(handlers, *[part(product_id="red-mug")] * 41)
        three = item_pb2.Query(parts=[item_pb2.QueryPart(product_id="red-mug")] * 3)
        with pytest.raises(InvalidRequestError, match=r"^queries: 42 parts and examples; give up to 40"):
            search(handlers, *[three] * 14)
        three = item_pb2.Query(parts=three.parts[:2], positive_examples=three.parts[:1])
        with pytest.raises(InvalidRequestError, match=r"^queries: 42 parts and examples; give up to 40"):
            search(handlers, *[three] * 14)


class TestPredictCategory:
    def predict(self, handlers: Handlers, **request: object) -> list[item_pb2.CategoryPrediction]:
        message = item_pb2.PredictCategoryRequest(**request)  # type: ignore[arg-type]
        return list(handlers.predict_category(message, "me", FOREVER).predictions)

    def test_votes_of_the_closest_products(
        self, handlers: Handlers, served_engine: Engine, served_store: Store
    ) -> None:
        listing = shop()[13]
        source = item_pb2.Input(text=listing.title, description=listing.description, image=listing.images[0].data)
        (prediction,) = self.predict(handlers, inputs=[source], top_k=100)
        query = served_engine.encode([listing]).vectors
        category_of = {one.product_id: one.category for one in shop()}
        hits = [(category_of[hit.product_id], hit.score) for hit in served_store.search(query, 30)[0].hits]
        voters = [(path, score) for path, score in hits if path][:5]
        total = sum(score for _, score in voters)
        best = max(
            {path for path, _ in voters},
            key=lambda wanted: sum(score for path, score in voters if path == wanted),
        )
        levels = prediction.paths[0].levels
        assert tuple(level.name for level in levels) == best
        for depth, level in enumerate(levels, start=1):
            votes = sum(score for path, score in voters if path[:depth] == best[:depth])
            assert level.probability == pytest.approx(votes / total, abs=1e-6)
        assert not prediction.abstained
        assert prediction.method == item_pb2.PREDICTION_METHOD_NEIGHBOUR_VOTE

    def test_top_k_and_start(self, handlers: Handlers) -> None:
        (one,) = self.predict(handlers, inputs=[item_pb2.Input(text="red mug")], top_k=1)
        assert len(one.paths) == 1
        (under,) = self.predict(handlers, inputs=[item_pb2.Input(text="red mug")], start_category=["Clothing", "Shoes"])
        assert [[level.name for level in path.levels] for path in under.paths] == [["Clothing", "Shoes"]]
        assert [level.probability for level in under.paths[0].levels] == pytest.approx([1, 1])
        (nobody,) = self.predict(handlers, inputs=[item_pb2.Input(text="red mug")], start_category=["Cars"])
        assert (nobody.abstained, len(nobody.paths)) == (True, 0)

    def test_abstains_without_categories(self, served_engine: Engine, tmp_path: Path) -> None:
        write_index(tmp_path, served_engine, [replace(listing, category=()) for listing in shop()])
        with Store.open(tmp_path / "default") as store:
            handlers = Handlers(served_engine, {"default": store}, Limits())
            (prediction,) = self.predict(handlers, inputs=[item_pb2.Input(text="red mug")])
        assert prediction.abstained
        assert not prediction.paths

    def test_bad_input_leaves_its_neighbours_alone(self, handlers: Handlers) -> None:
        inputs = [item_pb2.Input(), item_pb2.Input(text="red mug"), item_pb2.Input(text="a", adapter="x")]
        empty, fine, adapter = self.predict(handlers, inputs=inputs)
        assert (empty.error.field, empty.error.code) == ("inputs[0]", Status.INVALID_ARGUMENT)
        assert (adapter.error.field, adapter.error.code) == ("inputs[2].adapter", Status.NOT_FOUND)
        assert fine.paths
        assert not fine.HasField("error")

    @pytest.mark.parametrize("top_k", [0, 101])
    def test_top_k_out_of_range(self, handlers: Handlers, top_k: int) -> None:
        with pytest.raises(InvalidRequestError, match=rf"^top_k: {top_k} is not within 1 to 100"):
            self.predict(handlers, inputs=[item_pb2.Input(text="a")], top_k=top_k)


def test_get_product(handlers: Handlers, served_store: Store, served_engine: Engine) -> None:
    request = item_pb2.GetProductRequest(product_id="red-mug")
    plain = handlers.get_product(request, "me", FOREVER)
    assert (plain.product.title, plain.product.description) == ("red mug", "a mug in red for every day")
    assert not plain.HasField("vector")
    request.include_vector = True
    whole = handlers.get_product(request, "me", FOREVER)
    np.testing.assert_array_equal(values(whole.vector), served_store.vector("red-mug"))
    assert whole.vector.space == served_engine.space
    with pytest.raises(NotFoundError, match="'purple-mug' is not in the collection"):
        handlers.get_product(item_pb2.GetProductRequest(product_id="purple-mug"), "me", FOREVER)
    with pytest.raises(InvalidRequestError, match="product_id: is empty"):
        handlers.get_product(item_pb2.GetProductRequest(), "me", FOREVER)


def test_get_info(handlers: Handlers, served_engine: Engine, served_store: Store) -> None:
    info = handlers.get_info(item_pb2.GetInfoRequest(), "me", FOREVER)
    assert (info.model.space, info.model.vector_width, info.model.engine) == (
        served_engine.space,
        32,
        served_engine.name,
    )
    (collection,) = info.collections
    assert (collection.name, collection.num_products, collection.space) == ("default", 30, served_engine.space)
    assert collection.create_time.ToDatetime().isoformat(timespec="microseconds") in served_store.about.created
    assert collection.generation == served_store.generation
    assert [(one.kind, one.num_products, one.tuned_recall) for one in collection.indexes] == [("Flat", 30, 1.0)]
    assert not collection.HasField("recall_estimate")  # exact answers are not searched again
    assert (info.limits.max_inputs, info.limits.max_k) == (40, 50)
    assert info.limits.max_image_bytes == served_engine.preprocessor.config.max_picture_bytes
    alone = Handlers(served_engine, {}, Limits()).get_info(item_pb2.GetInfoRequest(), "me", FOREVER)
    assert not alone.collections


Call = Callable[[Handlers, str], object]
DATA_CALLS: dict[str, Call] = {
    "search": lambda handlers, collection: handlers.search(
        item_pb2.SearchRequest(collection=collection, queries=[part(product_id="red-mug")]), "me", FOREVER
    ),
    "predict_category": lambda handlers, collection: handlers.predict_category(
        item_pb2.PredictCategoryRequest(collection=collection, inputs=[item_pb2.Input(text="a")]), "me", FOREVER
    ),
    "get_product": lambda handlers, collection: handlers.get_product(
        item_pb2.GetProductRequest(collection=collection, product_id="red-mug"), "me", FOREVER
    ),
}


@pytest.mark.parametrize("name", DATA_CALLS)
def test_collections(handlers: Handlers, served_engine: Engine, name: str) -> None:
    call = DATA_CALLS[name]
    assert call(handlers, "default") is not None
    with pytest.raises(NotFoundError, match=r"^collection: 'winter' is not there; this server has 'default'"):
        call(handlers, "winter")
    with pytest.raises(PreconditionError, match=r"no index is loaded; .* --index"):
        call(Handlers(served_engine, {}, Limits()), "")


def test_nothing_is_searched_after_the_deadline(handlers: Handlers) -> None:
    late = Deadline.after(-1)
    with pytest.raises(DeadlineError):
        handlers.search(item_pb2.SearchRequest(queries=[part(product_id="red-mug")]), "me", late)
    with pytest.raises(DeadlineError):
        handlers.predict_category(item_pb2.PredictCategoryRequest(inputs=[item_pb2.Input(text="a")]), "me", late)


def test_a_collection_of_another_space_is_refused(served_engine: Engine, tmp_path: Path) -> None:
    about = About(space="0" * 64, vector_width=WIDTH)
    with (
        Store.create(tmp_path / "winter", about) as other,
        pytest.raises(SpaceError, match=r"'winter' is of space 0{12} .* build the collection with this model"),
    ):
        Handlers(served_engine, {"winter": other}, Limits())


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_k: 0 is below 1"):
        Limits(max_k=0)


def test_every_error_names_its_field() -> None:
    assert str(RequestError("k", "0 is not within 1 to 5")) == "k: 0 is not within 1 to 5"
    assert str(RequestError("", "too late")) == "too late"
