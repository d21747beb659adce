"""The sample shop: a seeded catalogue drawn by a generator, to try every program on without data of one's own."""
