"""``dynamic_preprocess`` of InternVL and NVILA once more, in the plainest words, for comparison.

Written from the rule: list the grids, measure how far each shape is from the picture's, prefer the
larger of equals where the picture fills more than half of it, stretch, cut box by box.
"""

from PIL import Image


def reference_grid(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """(columns, rows) by looking at one grid after the other."""
    grids = {(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most}
    chosen, least = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - columns / rows)
        fills_half = width * height > 0.5 * side * side * columns * rows
        if difference < least or (difference == least and fills_half):
            chosen, least = (columns, rows), min(least, difference)
    return chosen


def reference_tiles(
    image: Image.Image, side: int, most: int, *, thumbnail: bool
) -> list[Image.Image]:
    """The tiles of an RGB image, row by row, and its thumbnail behind more than one."""
    columns, rows = reference_grid(*image.size, side, most)
    stretched = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    tiles = [
        stretched.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
        for y in range(rows)
        for x in range(columns)
    ]
    if thumbnail and len(tiles) > 1:
        tiles.append(image.resize((side, side), Image.Resampling.BICUBIC))
    return tiles
