"""Weights that others have published, made into folders and files that ppvilg reads: one function for each kind.

A function takes the paths that it reads, in the order of the command line, and `out`, which it writes; it returns what to
print (tools/convert.py).
"""

from ppvilg.convert.artist import convert_artist
from ppvilg.convert.inception import convert_inception
from ppvilg.convert.llamagen import convert_llamagen
from ppvilg.convert.lpips import convert_lpips
from ppvilg.convert.rudalle import convert_rudalle
from ppvilg.convert.taming import convert_taming

KINDS = {
    "artist": convert_artist,
    "taming": convert_taming,
    "llamagen": convert_llamagen,
    "rudalle": convert_rudalle,
    "lpips": convert_lpips,
    "inception": convert_inception,
}
