"""Cache layers of insertions: behind the base's, each like the base layer it stands beside."""

from transformers import AutoConfig, DynamicCache

from otter_cli.model.cache import ensure_inserted_layer


def test_windows_follow_the_layer_whichever_insertion_asks_first() -> None:
    config = AutoConfig.for_model(
        "gemma3_text",
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    for order in ([3, 7, 5], [7, 3, 5], [8, 4, 3]):
        cache = DynamicCache(config=config)
        for at in order:
            ensure_inserted_layer(cache, at, depth=3, new_tokens=0)
        kinds = [layer.is_sliding for layer in cache.layers]
        assert kinds == [at % 3 != 1 for at in range(len(kinds))]


def test_a_cache_that_grows_as_it_is_used_keeps_the_base_s_places() -> None:
    cache = DynamicCache()
    cache.layers.append(DynamicCache(config=AutoConfig.for_model("llama")).layers[0])
    ensure_inserted_layer(cache, 3, depth=3, new_tokens=0)
    assert len(cache.layers) == 4 and len({id(layer) for layer in cache.layers}) == 4
