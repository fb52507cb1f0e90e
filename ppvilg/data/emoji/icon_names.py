"""Which emoji an icon's name means.

The icon sets name their pictures after CLDR or Unicode names of their day, or after nothing but their own taste. An
icon is taken only if its name is one of the emoji's official names or stands in a table below; all matches were looked
at beside the other styles.
"""

import re
import unicodedata
from collections.abc import Iterable

from ppvilg.data.emoji.concepts import Emoji, normal_id

_TONED = re.compile(r"(.+?)-(?:tone(?P<number>[1-5])|(?P<word>(?:medium-)?(?:light|dark)|medium)-skin-tone)")
_TONE_WORDS = ("light", "medium-light", "medium", "medium-dark", "dark")

# Names that CLDR has since changed and that are no Unicode character names either (noto-v1, emojione).
_OLD_NAMES = {
    "a-button": "1F170", "ab-button": "1F18E", "b-button": "1F171", "o-button": "1F17E",
    "blond-haired-person": "1F471", "bride-with-veil": "1F470", "direct-hit": "1F3AF", "dizzy-face": "1F635",
    "exclamation-mark": "2757", "question-mark": "2753", "heavy-heart-exclamation": "2763", "hugging-face": "1F917",
    "man-with-chinese-cap": "1F472", "pouting-face": "1F621", "smiling-cat-face-with-heart-eyes": "1F63B",
    "up-text-button": "1F199", "up-exclamation-button": "1F199", "cat-face-with-tears-of-joy": "1F639",
    "cat-face-with-wry-smile": "1F63C", "crying-cat-face": "1F63F", "grinning-cat-face": "1F63A",
    "grinning-cat-face-with-smiling-eyes": "1F638", "kissing-cat-face": "1F63D", "pouting-cat-face": "1F63E",
    "weary-cat-face": "1F640", "man-and-woman-holding-hands": "1F46B", "two-men-holding-hands": "1F46C",
    "two-women-holding-hands": "1F46D", "man-in-suit-levitating": "1F574", "robot-face": "1F916",
    "flag-for-rainbow-flag": "1F3F3-200D-1F308", "flag-for-black-flag": "1F3F4", "flag-for-white-flag": "1F3F3",
    "flag-for-chequered-flag": "1F3C1", "flag-for-crossed-flags": "1F38C", "flag-for-triangular-flag": "1F6A9",
}  # fmt: skip

# Countries whose English names have changed, or are spelt with more words today.
_OLD_COUNTRIES = {
    "cocos-islands": "CC", "heard-and-mcdonald-islands": "HM", "macau-sar-china": "MO", "macedonia": "MK",
    "myanmar": "MM", "swaziland": "SZ", "turkey": "TR", "cote-divoire": "CI", "us-outlying-islands": "UM",
    "us-virgin-islands": "VI", "czech-republic": "CZ", "cape-verde": "CV", "st-martin": "MF",
}  # fmt: skip

# fxemoji has names of its own. Where it draws something else than the character stands for (foxes for cats), where the
# meaning is anybody's guess, or where it draws two versions, the icon is left out.
_FXEMOJI = {
    "2hearts": "1F495", "americasglobe": "1F30E", "anguish": "1F627", "aok": "1F44C", "asiaaustraliaglobe": "1F30F",
    "backwithleftwardsarrow": "1F519", "ballottboxwithballott": "1F5F3", "banknotedollar": "1F4B5",
    "banknoteeuro": "1F4B6", "banknotepound": "1F4B7", "banknoteyen": "1F4B4", "beachumbrella": "1F3D6",
    "beating-heart": "1F493", "bellcancellation": "1F515", "blackdownpointingdoublearrow": "23EC",
    "blackleftpointingarrow": "25C0", "blackleftpointingdoublearrow": "23EA", "blackquestionmark": "2753",
    "blackrightpointingarrow": "25B6", "blackrightpointingdoublearrow": "23E9", "blackskullcrossbones": "2620",
    "blackuppointingdoublearrow": "23EB", "blonde": "1F471", "bolt": "26A1", "bookmarktab": "1F4D1",
    "bouquetofflowers": "1F490", "bowing": "1F647", "bride": "1F470", "bullhorn": "1F4E2", "bunny": "1F430",
    "bunny-ears": "1F46F", "bunnyside": "1F407", "catside": "1F408", "cellphone": "1F4F1",
    "chartdownwardstrend": "1F4C9", "chartupwardstrend": "1F4C8", "chartupwardstrendyen": "1F4B9",
    "chilipepper": "1F336", "chineseflag": "1F1E8-1F1F3", "clockwisedownupcircledarrows": "1F503",
    "clockwiserightwardsleftwardscirclearrows": "1F501", "clockwiserightwardsleftwardscirclearrowsone": "1F502",
    "closedmailboxlowered": "1F4EA", "closedmailboxraised": "1F4EB", "confetti": "1F38A", "construct": "1F477",
    "controlknob": "1F39B", "crying": "1F622", "devilhorns": "1F608", "diamondshapewithdotinside": "1F4A0",
    "dissapointedrelief": "1F625", "dogside": "1F415", "doubleexclaimationmark": "203C", "dragonhead": "1F432",
    "dragonside": "1F409", "eightspokedasterix": "2733", "endwithleftwardsarrow": "1F51A",
    "envelopedownarrowabove": "1F4E9", "europeafricaglobe": "1F30D", "evergreen": "1F332",
    "exclaimationquestionmark": "2049", "fallingleaf": "1F342", "faxicon": "1F4E0", "fishcakeswirl": "1F365",
    "fistedhand": "1F44A", "flexbicep": "1F4AA", "folder": "1F4C1", "forkknife": "1F374", "frontfacingchick": "1F425",
    "frown": "1F64D", "girlgirl": "1F46D", "girlguy": "1F46B", "gma": "1F475", "gpa": "1F474",
    "greatbritainflag": "1F1EC-1F1E7", "grineyes": "1F604", "grinsquint": "1F606", "grinsweat": "1F605",
    "grintears": "1F602", "grinwide": "1F603", "guapimao": "1F472", "guyguy": "1F46C", "halo": "1F607",
    "hampster": "1F439", "headmassage": "1F486", "heartarrow": "1F498", "heartgreen": "1F49A",
    "heartpurple": "1F49C", "heartribbon": "1F49D", "heartyellow": "1F49B", "heavyexclaimationmarksymbol": "2757",
    "heavymultiplicationsymbol": "2716", "heels": "1F460", "highspeedtrainbulletnose": "1F685",
    "italianflag": "1F1EE-1F1F9", "japaneseangrymask": "1F479", "kissclosedeyes": "1F61A", "kisseyes": "1F619",
    "koreaflag": "1F1F0-1F1F7", "leaffluttering": "1F343", "leftmagnifyingglass": "1F50D",
    "leftwritinghand": "270D", "leopardside": "1F406", "lockandkey": "1F510", "loudlycrying": "1F62D",
    "lowerleftpen": "1F58B", "manltepiececlock": "1F570", "mansshirt": "1F455", "medicalmask": "1F637",
    "mensrunner": "1F45F", "mensshoe": "1F45E", "meridianglobe": "1F310", "monkeyhear": "1F649", "monkeysee": "1F648",
    "monkeyspeak": "1F64A", "mouseside": "1F401", "negativesquaredlatincaptiala": "1F170",
    "negativesquaredlatincaptialb": "1F171", "negativesquaredlatincaptialo": "1F17E", "neutral": "1F610",
    "nogesture": "1F645", "nooneunder18symbol": "1F51E", "notebookdecorativecover": "1F4D4", "okgesture": "1F646",
    "openfolder": "1F4C2", "openmailboxlowered": "1F4ED", "openmailboxraised": "1F4EC", "opticaldiscicon": "1F4BF",
    "perservere": "1F623", "pigside": "1F416", "pigsnout": "1F43D", "pinkwallet": "1F45B", "poo": "1F4A9",
    "portablewatersystem": "1F6B0", "pout": "1F64E", "pouting": "1F621", "present": "1F381", "printericon": "1F5A8",
    "racecar": "1F3CE", "raisedhandsfingerssplayed": "1F590", "reversehandmiddlefinger": "1F595",
    "ringingbell": "1F514", "russianflag": "1F1F7-1F1FA", "saggitarius": "2650", "sandals": "1F461",
    "screamfear": "1F631", "silhouetteohjapan": "1F5FE", "sixpointedstarwithdot": "1F52F", "sleuthspy": "1F575",
    "smallfrown": "1F641", "smallsmile": "1F642", "smileeyes": "1F60A", "snowmountains": "1F3D4",
    "soonwithrightarrow": "1F51C", "spanishflag": "1F1EA-1F1F8", "speaker3soundwaves": "1F50A",
    "speakercancellation": "1F507", "speakeronesoundwave": "1F509", "speechbubble": "1F4AC", "spurtingwhale": "1F433",
    "squaredup": "1F199", "stormcloud": "26C8", "studiomic": "1F399", "sunraincloud": "1F326", "sweatsplash": "1F4A6",
    "swimming": "1F3CA", "ten": "1F51F", "tennisball": "1F3BE", "thoughtbaloon": "1F4AD", "tie": "1F454",
    "tigerside": "1F405", "tired": "1F62B", "tongueoutwink": "1F61C", "topwithupwardsarrow": "1F51D",
    "toykotower": "1F5FC", "turban": "1F473", "videocasette": "1F4FC", "waitress": "1F481",
    "waningbibbousmoon": "1F316", "waving": "1F44B", "whitedownpointinglefthand": "1F447",
    "whiteexclaimationmark": "2755", "whitestar": "2B50", "whitesun": "2600", "whitesunbehindcloud": "26C5",
    "whitesunsmallcloud": "1F324", "winking": "1F609", "womansshirt": "1F45A", "acorn": "1F330",
    "downpointingsmallredtrisngle": "1F53D", "uppointingsmallredtrisngle": "1F53C", 
    "rightmagnifyingglass": "1F50E", "tongueout": "1F61B", "raisedhandpartfingers": "1F596", "high5": "1F64C",
    "clock12oclock": "1F55B", "clock1oclock": "1F550", "clock2oclock": "1F551", "clock3oclock": "1F552",
    "clock7oclock": "1F556", "clock6oclock": "1F555", "clock12thirty": "1F567", "clock1thirty": "1F55C",
    "clock2thirty": "1F55D", "clock3thirty": "1F55E", "clock4thirty": "1F55F", "clock5thirty": "1F560",
    "clock6thirty": "1F561", "handup": "1F64B", "smiletongue": "1F60B", "musicascend": "1F3B5", 
    "kiss": "1F617", "dog": "1F436", "cat": "1F431", "tiger": "1F42F", "mouse": "1F42D", "pig": "1F437",
    "umbrella": "1F302", "page": "1F4C4", "pages": "1F4D1", "leftangerbubble": "1F5EF", "leftthoughtbubble": "1F4AD",
}  # fmt: skip

# Icons whose names say one thing and whose pictures show another: a revolver for what is now a water pistol, a key
# without its star, a crane for a barrier, a program's window, a piano's keys, a black box.
_MISLEADING = {
    "noto-v1": {"pistol", "keycap"},
    "emojione": {"pistol"},
    "fxemoji": {"pistol", "construction", "window", "keyboard", "tramcar"},
}


def slug(name: str) -> str:
    """A name as the icon sets spell it: `Côte d’Ivoire` -> `cote-divoire`."""
    plain = unicodedata.normalize("NFKD", name.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c) and c not in "'’.").replace("&", " and ")
    return re.sub("[^a-z0-9]+", "-", plain.replace("ı", "i")).strip("-")


class IconNames:
    """Looks icon names up."""

    def __init__(self, emoji: list[Emoji], unicode_names: dict[str, str]):
        """`unicode_names`: {code points: Unicode character names}, as in emojibase's meta/unicode-names.json."""
        self._known = {e.codepoints for e in emoji}
        self._toned = {(e.concept, e.tone): e.codepoints for e in emoji}
        self._official = {slug(e.label): e.codepoints for e in emoji}
        self._characters = {}
        for codepoints, name in unicode_names.items():
            if normal_id(codepoints) in self._known:
                self._characters.setdefault(slug(name), normal_id(codepoints))
        for country, region in _OLD_COUNTRIES.items():
            self._official.setdefault(f"flag-{country}", "-".join(f"{0x1F1E6 + ord(c) - 65:X}" for c in region))
        self._squeezed: dict[str, str] = {}  # fxemoji's names have no hyphens
        for table in (self._official, self._characters, _OLD_NAMES):
            for key, codepoints in table.items():
                self._squeezed.setdefault(key.replace("-", ""), codepoints)

    def find(self, style: str, names: Iterable[str]) -> str | None:
        """The emoji that an icon of a style with these names (its own and its aliases) shows; None if unknown."""
        names = list(names)
        if names[0] in _MISLEADING.get(style, ()):
            return None
        if style == "fxemoji":
            return self._find_fxemoji(names[0])
        found = {self._find(name) for name in names} - {None}
        # Names that disagree (a picture shared by two emoji) are settled by the icon's own name, which comes first.
        return self._find(names[0]) or min(found) if found else None

    def _find(self, name: str) -> str | None:
        plain = name.replace("flag-for-flag-", "flag-").replace("flag-for-", "flag-")
        for table, key in ((self._official, name), (_OLD_NAMES, name), (self._official, plain)):
            if key in table:
                return table[key]
        if name in self._characters:
            return self._characters[name]
        if toned := _TONED.fullmatch(name):
            base = self._find(toned[1])
            tone = int(toned["number"]) if toned["number"] else _TONE_WORDS.index(toned["word"]) + 1
            return self._toned.get((base, tone))
        return None

    def _find_fxemoji(self, name: str) -> str | None:
        return _FXEMOJI.get(name) or self._squeezed.get(name.replace("-", ""))
