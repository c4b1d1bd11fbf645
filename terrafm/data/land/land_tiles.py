"""Where on the Earth land may lie: tells sea from a WorldCover tile that is merely not at hand.

ESA publishes 2,651 tiles of WorldCover 2021 v200, those with land between 60 S and 84 N. This
table is not their list but derived, and it errs to one side. A tile of 3 x 3 degrees counts as
land where a shoreline of GSHHG (full resolution, islands of any size; Wessel and Smith 1996,
doi:10.1029/96JB00104) lies within 8 km of it, or where NOAA's GLOBE has land. Between 60 S and
84 N that is 2,731 tiles: at least 80 without a tile of ESA's count as land, and what counts as
sea has no shoreline that GSHHG knows. `tests/data/make_land_tiles.py` makes it anew.
"""

PUBLISHED_TILES = 2651
"""Of WorldCover 2021 v200."""

SOUTHERNMOST = -60
"""South of it, degrees, WorldCover has no tile: Antarctica is not mapped."""

_ACROSS = 120
# A row of tiles from 84 N southward, as hexadecimal digits of four tiles each from 180 W eastward.
_NORTH = 84
_TABLE = """
    0000000fffffff80000fc278000000
    000007ffffffff01ffbfc63f800000
    00003ffffffffe00f803f1ffe07f80
    00007ffff0fffe002007bffffffe00
    c7fffffffc7ff8c0ff8fffffffffff
    ffffffffff7fff01ffffffffffffff
    ffffffffff3f9f03ffffffffffffff
    3ffffffdfe3e0057ffffffffffffff
    1ffffffe7f0c0177fffffffffffff8
    1f83ffffffc000fbfffffffffff1f8
    fc01ffffffc000fffffffffffff1c7
    0000ffffffe0007ffffffffffff980
    00003fffffe0003ffffffffffff700
    00003fffff8000fffdfffffffffc00
    00003ffff80060ffffffffffff3000
    00003ffff00030fffffffffffff000
    00001fffe000027f9fffffffffe000
    00000fffc20002ffffffffffffa000
    c0000fffe00007fffffffffffb3000
    780007f0f00003ffffffffffff1100
    0f0003f7f80003ffffff3ffffc0000
    018007ffff0003ffffff1fffe84810
    1000007fff001bfffffe0f1fd80800
    00000007dd801bfffffe0e3f9c0808
    00000101ff0003fffffc0f3ffe6a78
    04000000ffc001fffff80f3f7effdc
    06000003fff000fffff80a1fff81ac
    410000067ff00003fff0081fff0106
    22000006fffe0007ffe0080ffffe1a
    71800000ffffc001ffc61807ffffc2
    21040000ffff8100ffc61803ffffe3
    2b4400007fff8000fffe00093ffff9
    f43c00003fff0000fff800080fd81b
    e4fc00003fff0021fffb00001fff3b
    f71e00000fff2001ffbb40003ffff9
    c3e780000ffe0000ff7a00007fffbc
    0000e1804ff80000ff3000007fff00
    801801000ff000007e0000007fff18
    800000000ff000007e0000003fffc0
    000000005fe000007c0000003cfe06
    000000001fc0010000000400007e07
    000000001f00008000000000001c07
    c00000003e00000000000000000c1e
    000000003e000000008c000000001d
    000000003f00000000003000000011
    000000003d83000000000800000018
    000000001e01b004000000000000c0
    000000000000300000000000000000
    0000000001ec000000000000000000
    0000000007c000000006003ee08000
    000000041f800000037fffffffffb0
    000000783f0001fffffffffffffffc
    0007ffffff801ffffffffffffffff8
    83fffffffffeffffffffffffffffff
    ffffffffffffffffffffffffffffff
    ffffffffffffffffffffffffffffff
    ffffffffffffffffffffffffffffff
    ffffffffffffffffffffffffffffff
"""
_LAND = _TABLE.split()


def may_hold_land(south: int, west: int) -> bool:
    """Whether land may lie in a tile.

    Args:
        south: of the tile's south-west corner, degrees, a multiple of 3.
        west: likewise, -180..177.
    """
    row = (_NORTH - south) // 3 - 1
    if row < 0:
        return False
    return bool(int(_LAND[row], 16) >> (_ACROSS - 1 - (west + 180) // 3) & 1)
