"""What the page shows of one question's experts, and what one can take home."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict

from vlmoe.adapter.routing import LayerRouting, TokenRouting
from vlmoe.demo import drawing, markup
from vlmoe.files import to_json
from vlmoe.tasks.predict import Experts
from vlmoe.train.record.charts import router_map

_NUMBERED = re.compile(r"\blayers\.(\d+)\.(?:self_attn\.)?(.+)")


def layer_names(experts: Experts, tower: str) -> dict[str, str]:
    """The adapted layers of a tower: what a menu calls them -> path, in the model's order."""
    paths = [layer.path for layer in experts.layers if layer.tower == tower]
    return {_short(path): path for path in paths}


def draw_maps(experts: Experts) -> dict[str, bytes]:
    """A map of layers x experts for each tower that has adapted layers, as PNG."""
    drawn = {}
    for tower, rows in _by_tower(experts).items():
        png = router_map(rows, f"load of the experts, {tower} tower")
        assert png is not None
        drawn[tower] = png
    return drawn


def maps(experts: Experts, drawn: Mapping[str, bytes]) -> str:
    """The maps that ``draw_maps`` made, with their descriptions."""
    figures = [
        f"<figure>{markup.picture(drawn[tower], _described(rows))}</figure>"
        for tower, rows in _by_tower(experts).items()
    ]
    return f'<div class="maps">{"".join(figures)}</div>'


def patches(experts: Experts, path: str | None) -> str:
    """The picture with each patch in the colour of its leading expert in a layer."""
    layer = _layer(experts, path)
    if experts.patches is None:
        return markup.note("The last question had no picture.")
    if layer is None:
        return markup.note("The adapter has no layers in the vision tower.")
    leading = experts.leading(layer)
    seen, rows, columns, _ = experts.patches
    drawn = drawing.patches_png(seen, leading, (rows, columns))
    what = f"the picture's {len(leading)} patches, each in the colour of its leading expert"
    legend = markup.legend(leading, "patches")
    link = markup.download(drawn, "patches.png", "image/png", "Save as PNG")
    return (
        f'<div class="patches">{markup.picture(drawn, what)}{legend}'
        f'<div class="downloads">{link}</div></div>'
    )


def tokens(experts: Experts, path: str | None) -> str:
    """The question and the answer with each token in the colour of its leading expert."""
    layer = _layer(experts, path)
    if layer is None:
        return markup.note("The adapter has no layers in the language tower.")
    leading = layer.leading
    shown = [at for at in range(len(leading)) if at not in experts.picture]
    drawn = drawing.tokens_png([experts.tokens[at] for at in shown], [leading[at] for at in shown])
    link = markup.download(drawn, "tokens.png", "image/png", "Save as PNG")
    return (
        markup.tokens(experts.tokens, leading, experts.picture)
        + markup.legend([leading[at] for at in shown], "words' tokens")
        + f'<div class="downloads">{link}</div>'
    )


def downloads(experts: Experts, drawn: Mapping[str, bytes], adapter: str, model: str) -> str:
    """Links to the maps as PNG and to everything as JSON."""
    links = [
        markup.download(png, f"experts-{tower}.png", "image/png", f"Map of the {tower} tower (PNG)")
        for tower, png in drawn.items()
    ]
    text = to_json(record(experts, adapter, model))
    links.append(
        markup.download(text.encode(), "experts.json", "application/json", "Everything (JSON)")
    )
    return f'<div class="downloads">{"".join(links)}</div>'


def record(experts: Experts, adapter: str, model: str) -> dict[str, object]:
    """Everything as JSON: every layer's shares, and the leading expert of every token."""
    return {
        "model": model,
        "adapter": adapter,
        "tokens": experts.tokens,
        "picture_tokens": [experts.picture.start, experts.picture.stop],
        "patches": [experts.patches.rows, experts.patches.columns] if experts.patches else [0, 0],
        "layers": [
            asdict(row) | {"idle": row.idle, "leading": layer.leading}
            for row, layer in zip(experts.table, experts.layers, strict=True)
        ],
    }


def _by_tower(experts: Experts) -> dict[str, list[LayerRouting]]:
    towers = dict.fromkeys(layer.tower for layer in experts.table)
    return {tower: [row for row in experts.table if row.tower == tower] for tower in towers}


def _described(rows: list[LayerRouting]) -> str:
    busiest = max(rows, key=lambda row: max(row.share) * len(row.share))
    top = max(busiest.share)
    return (
        f"Map of {len(rows)} layers by {max(len(row.share) for row in rows)} experts of the "
        f"{rows[0].tower} tower. The busiest is expert {busiest.share.index(top)} of "
        f"{busiest.path}, with {top * len(busiest.share):.1f} times the even share."
    )


def _layer(experts: Experts, path: str | None) -> TokenRouting | None:
    return next((layer for layer in experts.layers if layer.path == path), None)


def _short(path: str) -> str:
    """``layer 3: q_proj``, or the whole path of what lies in no numbered layer."""
    match = _NUMBERED.search(path)
    return f"layer {match[1]}: {match[2]}" if match else path
