"""The seven free picture styles: where each comes from, under which licence, and what captions call it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One pinned npm package."""

    name: str
    version: str
    licence: str
    """SPDX identifier."""
    attribution: str
    """Who made it and where the work lives, as LICENSES.md says it."""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Style:
    """A set of pictures drawn in one hand."""

    id: str
    package: Package
    kind: str
    """How the package holds its pictures: `images` (files named by code points) or `icons` (SVG in JSON)."""
    location: str
    """Folder of the pictures inside the package (images) or the file with the icons (icons)."""
    words: dict[str, str]
    """What captions call the style, by language."""


NOTO = Package(
    "emoji-datasource-google", "16.0.0", "Apache-2.0",
    "Noto Emoji, Google Inc., https://github.com/googlefonts/noto-emoji (pictures Apache-2.0); "
    "packaged by Cal Henderson, https://github.com/iamcal/emoji-data (MIT)",
)  # fmt: skip
TWEMOJI = Package(
    "emoji-datasource-twitter", "16.0.0", "CC-BY-4.0",
    "Twemoji, Copyright Twitter, Inc. and other contributors, https://github.com/jdecked/twemoji (pictures CC-BY-4.0); "
    "packaged by Cal Henderson, https://github.com/iamcal/emoji-data (MIT)",
)  # fmt: skip
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "MIT",
    "Fluent Emoji, Copyright Microsoft Corporation, https://github.com/microsoft/fluentui-emoji; "
    "packaged by LobeHub, https://github.com/lobehub/fluent-emoji (MIT)",
)  # fmt: skip
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT",
    "Fluent Emoji, Copyright Microsoft Corporation, https://github.com/microsoft/fluentui-emoji; packaged by Iconify",
)  # fmt: skip
NOTO_V1 = Package(
    "@iconify-json/noto-v1", "1.2.5", "Apache-2.0",
    "Noto Emoji as of 2017, Google Inc., https://github.com/googlefonts/noto-emoji; packaged by Iconify",
)  # fmt: skip
EMOJIONE = Package(
    "@iconify-json/emojione", "1.2.3", "CC-BY-4.0",
    "EmojiOne 2.3 / EmojiTwo, Copyright Emoji One and the EmojiTwo contributors, https://github.com/EmojiTwo/emojitwo; "
    "packaged by Iconify",
)  # fmt: skip
FXEMOJI = Package(
    "@iconify-json/fxemoji", "1.2.2", "Apache-2.0",
    "FxEmojis, Mozilla Foundation, https://github.com/mozilla/fxemoji; packaged by Iconify",
)  # fmt: skip
NAMES = Package(
    "emojibase-data", "17.0.0", "MIT",
    "Emojibase, Copyright Miles Johnson, https://github.com/milesj/emojibase; its labels and tags come from Unicode "
    "CLDR (Unicode-3.0), Copyright Unicode, Inc.",
)  # fmt: skip

# The words are what a reader of the language would say, kept to one or two words because they stand in every caption.
# noto-v1 is the set whose faces are soft drops ("blobs", in Chinese also called jelly); twemoji drew for Twitter
# and fxemoji for Firefox OS, and these are names people know.
STYLES = (
    Style("noto", NOTO, "images", "img/google/64",
          {"zh": "Noto风格", "zh-hant": "Noto風格", "en": "Noto style"}),
    Style("twemoji", TWEMOJI, "images", "img/twitter/64",
          {"zh": "推特风格", "zh-hant": "推特風格", "en": "Twitter style"}),
    Style("fluent-3d", FLUENT_3D, "images", "assets",
          {"zh": "立体风格", "zh-hant": "立體風格", "en": "3D style"}),
    Style("fluent-flat", FLUENT_FLAT, "icons", "icons.json",
          {"zh": "扁平风格", "zh-hant": "扁平風格", "en": "flat style"}),
    Style("noto-v1", NOTO_V1, "icons", "icons.json",
          {"zh": "果冻风格", "zh-hant": "果凍風格", "en": "blob style"}),
    Style("emojione", EMOJIONE, "icons", "icons.json",
          {"zh": "EmojiOne风格", "zh-hant": "EmojiOne風格", "en": "EmojiOne style"}),
    Style("fxemoji", FXEMOJI, "icons", "icons.json",
          {"zh": "火狐风格", "zh-hant": "火狐風格", "en": "Firefox style"}),
)  # fmt: skip
