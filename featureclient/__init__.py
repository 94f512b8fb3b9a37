"""Features: define them, write them, cache them, read them. A library of its own that knows nothing of the gateway.

    catalogue = Catalogue.load("features.yaml")                         # featureclient.schema
    store = RedisStore(RedisOptions(url="redis://127.0.0.1:6379/0"))    # featureclient.store.redis
    async with FeatureClient(catalogue, store) as client:               # featureclient.client
        await client.write("plane_stats@1", {"tailnum": ["N14228"], "flights": [111]})
        rows = await client.read("plane_stats@1", ["N14228"])

A read goes through the tiers in order: the cache, one coalesced read of the store, the defaults.
"""
