"""From npm packages to the shards, manifest, vocabulary and licences of data/emoji."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ppvilg.data.emoji.captions import write_captions
from ppvilg.data.emoji.concepts import Emoji, read_emoji
from ppvilg.data.emoji.icon_names import IconNames
from ppvilg.data.emoji.images import read_images
from ppvilg.data.emoji.licences import write_licences
from ppvilg.data.emoji.packages import fetch, read
from ppvilg.data.emoji.splits import split_of
from ppvilg.data.emoji.styles import NAMES, STYLES, Style
from ppvilg.data.shards import write_manifest, write_shards
from ppvilg.data.vocabulary import build_vocabulary
from ppvilg.files import write_whole


def build(output: Path, cache: Path, say: Callable[[str], None] = print) -> dict[str, Counter]:
    """Write the data folder; returns {style: images by split}.

    Needs resvg-py, and npm unless the cache folder has the packages. The same packages and libraries give the same
    bytes.
    """
    tarballs = fetch([*(style.package for style in STYLES), NAMES], cache)
    unicode_names = json.loads(read(tarballs[NAMES], "meta/unicode-names.json")["meta/unicode-names.json"])
    everything = read_emoji(tarballs[NAMES])
    icon_names = IconNames(everything, unicode_names)
    emoji = {entry.codepoints: entry for entry in everything}

    images: dict[str, dict[str, bytes]] = {}
    for style in STYLES:
        images[style.id] = dict(read_images(style, tarballs[style.package], list(emoji.values()), icon_names))
        say(f"{style.id}: {len(images[style.id])} images from {style.package}")

    families = find_families(emoji, images)
    styles_of: dict[str, list[str]] = {}
    for style in STYLES:
        for concept in sorted({emoji[codepoints].concept for codepoints in images[style.id]}):
            styles_of.setdefault(concept, []).append(style.id)
    samples, captions, counts = [], [], {}
    for style in STYLES:
        counts[style.id] = Counter()
        for codepoints, image in images[style.id].items():
            entry = emoji[codepoints]
            split, novelty = split_of(entry, style.id, styles_of[entry.concept], families[entry.concept])
            metadata = describe(entry, style, novelty)
            captions += [line for lines in metadata["captions"].values() for line in lines]
            samples.append((split, f"{codepoints.lower()}_{style.id}", image, metadata))
            counts[style.id][split] += 1

    for old in output.glob("*.tar.gz"):
        old.unlink()
    entries = write_shards(output, samples)
    write_manifest(
        output,
        entries,
        counts={style: dict(sorted(by_split.items())) for style, by_split in counts.items()},
        packages={str(package): package.licence for package in tarballs},
    )
    write_whole(output / "vocab.txt", ("\n".join(build_vocabulary(captions)) + "\n").encode())
    write_licences(output)
    return counts


def describe(emoji: Emoji, style: Style, novelty: str) -> dict:
    """The metadata of one image as it stands in the shards."""
    return {
        "captions": write_captions(emoji, style),
        "style": style.id,
        "concept": emoji.concept,
        "codepoints": emoji.codepoints,
        "name": emoji.names,
        "tone": emoji.tone,
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "novelty": novelty,
        "source": str(style.package),
        "licence": style.package.licence,
    }


def find_families(emoji: dict[str, Emoji], images: dict[str, dict[str, bytes]]) -> dict[str, str]:
    """{concept: smallest id of the concepts that have the very same image in some style}."""
    parent = {entry.concept: entry.concept for entry in emoji.values()}

    def root(concept: str) -> str:
        while parent[concept] != concept:
            concept = parent[concept]
        return concept

    for by_codepoints in images.values():
        owners: dict[bytes, str] = {}
        for codepoints, image in by_codepoints.items():
            concept = emoji[codepoints].concept
            ends = sorted((root(owners.setdefault(image, concept)), root(concept)))
            parent[ends[1]] = ends[0]
    return {concept: root(concept) for concept in parent}
