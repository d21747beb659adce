"""What the demo asks the server: offers that are not in the index, and a few words of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.demo_page import Card, Prediction, Query
from item.catalog.listing import Listing
from item.catalog.reader import Catalog
from item.client import Client
from item.queries import Input
from item.results import Hit

NUM_HITS = 6
NUM_OFFERS = 4  # asked about a section
WORDS = ("striped mug", "blue teapot", "electric guitar", "plaid skirt for the office")


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Searches and draws the results as cards.

    shop: the sample shop's folder as the page refers to it; group_of: product_id -> group_id of the catalogue.
    """

    client: Client
    shop: str
    group_of: dict[str, str | None]

    def by_words(self, words: str) -> Query:
        """Free words: nothing is the one right answer."""
        (result,) = self.client.search(text=words, k=NUM_HITS)
        return Query(asked=Card(title=words), hits=[self._card(hit, None) for hit in result.hits], has_answer=False)

    def by_offer(self, offer: Listing, *, words: bool, picture: bool) -> Query:
        """A further offer, by its title, its picture, or both; hits of its product are the right answers."""
        path = offer.images[0].path if picture else None
        (result,) = self.client.search(text=offer.title if words else "", image=path, k=NUM_HITS)
        asked = self.offer_card(offer)
        asked = Card(title=asked.title if words else "", picture=asked.picture if picture else None)
        group = self.group_of[str(offer.group_id)]
        return Query(asked=asked, hits=[self._card(hit, group) for hit in result.hits], has_answer=True)

    def offer_card(self, offer: Listing) -> Card:
        """A further offer as shown."""
        picture = f"{self.shop}/offers/{offer.images[0].reference}"
        return Card(title=offer.title, picture=picture, category="/".join(offer.category))

    def _card(self, hit: Hit, group: str | None) -> Card:
        return Card(
            title=hit.title,
            picture=f"{self.shop}/{hit.image}" if hit.image else None,
            category="/".join(hit.category),
            score=hit.score,
            same=group is not None and hit.group_id == group,
        )


def ask(
    client: Client, catalog: Catalog, offers: Catalog, shop: str
) -> tuple[dict[str, list[Query]], list[Prediction]]:
    """The searches by section, and predicted categories; `shop` as the page refers to it."""
    group_of = {listing.product_id: listing.group_id for listing in catalog.listings}
    asker = Asker(client=client, shop=shop, group_of=group_of)
    by_words, by_picture, by_both, to_predict = choose_offers(offers.split("test"))
    searches = {
        "By words": [
            *map(asker.by_words, WORDS),
            *(asker.by_offer(offer, words=True, picture=False) for offer in by_words),
        ],
        "By picture": [asker.by_offer(offer, words=False, picture=True) for offer in by_picture],
        "By words and picture": [asker.by_offer(offer, words=True, picture=True) for offer in by_both],
    }
    return searches, predict(asker, to_predict)


def predict(asker: Asker, offers: Sequence[Listing]) -> list[Prediction]:
    """The three most probable categories of each offer."""
    inputs = [Input(text=offer.title, image=offer.images[0].path) for offer in offers]
    return [
        Prediction(
            asked=asker.offer_card(offer),
            paths=[("/".join(path.category), path.probabilities[-1]) for path in found.paths],
        )
        for offer, found in zip(offers, asker.client.predict(inputs, top_k=3), strict=True)
    ]


def choose_offers(offers: Sequence[Listing]) -> list[list[Listing]]:
    """Four times a few offers with words, picture and category; no category twice before all had their turn."""
    whole = [offer for offer in offers if offer.title and offer.images and offer.category]
    turn: dict[tuple[str, ...], int] = {}
    ranked = []
    for offer in whole:
        turn[offer.category] = turn.get(offer.category, -1) + 1
        ranked.append((turn[offer.category], offer.category, offer))
    chosen = [offer for _, _, offer in sorted(ranked, key=lambda entry: entry[:2])]
    return [chosen[start : 4 * NUM_OFFERS : 4] for start in range(4)]
