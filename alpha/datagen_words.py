"""Word lists that the generators of training text draw from, and how numbers and lists are put into words.

Names of people and places are made of a beginning and an ending, so that a few lines here give thousands of names.
"""


def words(text: str) -> tuple[str, ...]:
    """The words of a text between white space."""
    return tuple(text.split())


WOMEN = words("""Ada Agnes Alice Amina Anouk Beatrice Bridget Carmen Cecily Clara Cora Daphne Delia Edith Eleanor Elsa
    Esther Fatima Flora Freya Greta Hannah Harriet Hazel Helena Hilda Imogen Ingrid Iris Isolde Ivy Joan Judith Juno
    Kaya Lena Lucia Mabel Maeve Magda Mariam Martha Maud Mei Mina Nadia Nell Nora Olga Olive Petra Phoebe Priya Rosa
    Ruth Sabine Selma Sigrid Sofia Sylvia Tamsin Tessa Thea Una Vera Wanda Willa Yara Zelda Zora""")
MEN = words("""Abel Adrian Albert Anders Angus Anton Arthur Basil Bertram Bruno Caspar Cedric Conrad Cyril Dario
    Desmond Edgar Edmund Elias Emil Enzo Ernest Felix Fergus Frank Gideon Gilbert Gregor Gustav Hamish Harald Henry
    Hugo Igor Isaac Ivan Jasper Jonas Julian Karim Kenji Klaus Lars Leon Leopold Linus Ludwig Magnus Malik Marcus
    Martin Milo Nestor Nikolai Omar Oscar Otto Pablo Percy Quentin Ralph Ravi Rufus Samir Silas Simon Stefan Tobias
    Ulrich Victor Walter Wilfred Yusuf""")
SURNAME_STARTS = words("""Ash Bar Birch Black Brad Bram Car Chad Clay Cole Crow Dar Elder Fair Fen Fletch Gar Glen
    Gran Green Hag Hal Hart Haw Hob Holl Hux Kel Ken Lam Lang Lark Lin Lock Mar Mill Nor Oak Pem Pen Pick Quil Rad Red
    Rock Ros Sal Shel Stan Stern Tam Thorn Tre Wad Wal Web Whit Wil Win Yar""")
SURNAME_ENDS = words("""berry bourne burn by combe croft dale den field ford gate ham hurst ley low man more ridge son
    stead stone ton ward well wick wood worth""")
PLACE_STARTS = words("""Alder Amber Apple Ashen Barrow Beacon Birken Bram Bright Broad Cald Carrow Castle Clear Cold
    Crag Dun East Eller Elm Farn Fern Fox Frost Gold Grim Hallow Har Hazel Heather Heron High Holm Iron Kings Kirk
    Lang Lark Lin Long Marsh Mickle Moor Nether New North Oaken Old Otter Pebble Pine Queens Raven Red River Row Saint
    Salt Sand Silver South Stam Stone Storm Summer Swan Thistle Thorn Upper Wester White Wild Willow Winter Wolf""")
PLACE_ENDS = words("""beck borough bridge brook burgh bury by cliff combe cross dale field firth ford gate glen ham
    haven hithe holt hurst leigh mere minster mouth port ridge side stead stoke ton vale water well wick wold wood
    worth""")

ADJECTIVES = words("""ancient bitter bold brave bright broken calm careful cheerful clever clumsy cold copper crooked
    curious dark delicate distant dusty early eager elegant empty faded faint famous fearless fierce foolish forgotten
    fragile gentle gleaming golden graceful grand greedy green grim half-hidden happy heavy hidden hollow honest
    humble hungry idle iron jolly kind large late lazy little lively lonely lost lovely loud lucky merry mighty misty
    modest narrow nervous noble old ordinary pale patient peculiar plain pleasant polite proud purple quick quiet
    rambling rare restless rough royal rusty sad scarlet secret shallow sharp shy silent silver simple sleepy slender
    slow small smooth solemn solitary stern stiff strange sturdy sudden sunny sweet swift tall tame tangled tender
    thin thirsty tidy tiny tired unlucky vast velvet violet wandering warm weary wet white wicked wild wise wooden
    yellow young""")
ANIMALS = words("""badger bat bear beaver bee beetle blackbird buck bull cat cow crab crane cricket crow cuckoo deer
    dog donkey dove duck eagle eel falcon ferret finch fox frog goat goose hare hawk hedgehog hen heron hornet horse
    hound jackdaw lamb lark lion lizard magpie mare mole moth mouse mule newt nightingale otter owl ox parrot
    partridge peacock pelican pheasant pig pigeon plover pony puffin quail rabbit ram rat raven robin rook salmon seal
    sheep snail sparrow spider squirrel stag starling stork swallow swan swift thrush toad trout turtle vixen wasp
    weasel wolf wren""")
TRADES = words("""apothecary archivist astronomer baker banker barber beekeeper blacksmith boatman bookbinder botanist
    brewer bricklayer butcher candlemaker carpenter cartographer chemist clerk clockmaker cobbler composer cook dancer
    doctor draper engineer engraver farmer ferryman fiddler fisherman florist gardener gatekeeper geologist
    glassblower goldsmith governess grocer hatter inspector innkeeper jeweller joiner judge laundress lawyer librarian
    lighthouse-keeper locksmith magistrate mason merchant messenger midwife miller miner musician notary nurse
    organist painter pedlar photographer physician pilot ploughman poet porter postmaster potter printer ropemaker
    saddler sailor schoolmaster sculptor seamstress sexton shepherd shipwright signalman singer smuggler soldier
    stonemason student surgeon surveyor tailor tanner teacher thatcher tinker translator vintner watchmaker weaver
    wheelwright widow woodcutter""")
OBJECTS = words("""almanac anchor apron atlas axe basket bell blanket boot bottle box bracelet brooch broom brush
    bucket buckle button candle cane card case chain chair chalice chart chest cloak clock coat coin comb compass cord
    cradle crown cup cushion dagger diary dish drum envelope feather fiddle flag flask flute fork frame glove goblet
    hammer harp hat helmet hinge horn hourglass inkwell jar jug kettle key knife ladder lamp lantern ledger lens
    letter locket lute magnet map mask medal mirror mug nail necklace needle net notebook oar padlock parcel pen
    pencil penknife pennant photograph pillow pipe pitcher plate pocketwatch portrait pouch purse quill razor ribbon
    ring rope saddle satchel saucer scarf sceptre scroll shawl shell shield shovel sieve sketch spade spoon spur stamp
    statue stick stool sundial sword tablet tankard telescope thimble ticket toolbox torch tray trumpet trunk umbrella
    vase violin wallet whistle wig wreath""")
MATERIALS = words("""amber brass bronze clay copper coral crystal ebony glass gold iron ivory jade lead leather linen
    marble oak paper pearl pewter pine porcelain silk silver slate steel stone straw tin velvet walnut wax wool""")
COLOURS = words("""black blue brown crimson cream gold green grey indigo ivory lilac mauve olive orange pink purple
    red scarlet silver turquoise violet white yellow""")
FOODS = words("""almonds apples apricots asparagus bacon bananas barley beans beetroot biscuits blackberries bread
    broccoli butter cabbage cake carrots celery cheese cherries chestnuts chocolate coffee cream cucumbers currants
    dates dumplings eggs figs flour garlic ginger grapes ham honey jam kale leeks lemons lentils lettuce limes melons
    milk mint mushrooms mustard noodles nutmeg oats olives onions oranges parsley parsnips peaches peanuts pears peas
    pepper pickles plums porridge potatoes pumpkins radishes raisins raspberries rhubarb rice rye sage salt sausages
    spinach sugar tea thyme toast tomatoes treacle turnips vinegar walnuts yoghurt""")
LANDSCAPE = words("""barn bay beach bog bridge brook canal castle cave chapel church cliff common copse cottage creek
    crossroads dell dune farm fen ferry field fjord ford forest fountain garden gate glade glen gorge grove harbour
    heath hedge hill island lake lane lighthouse lock marsh meadow mill moor mountain oak orchard pasture path pier
    pond pool quarry reed-bed ridge river road rock shore spring square stile stream tower valley village wall
    waterfall well wharf wood yard""")
ABSTRACTIONS = words(  # nouns without a plural, so that they need no article
    """ambition beauty bitterness boredom charm cheerfulness comfort contempt courage cowardice curiosity danger delay
    delight discipline doubt duty elegance envy error eternity failure faith fame fate fear folly forgiveness fortune
    freedom friendship generosity gossip grace gratitude greed grief habit haste honesty honour hope hospitality humour
    hunger idleness imagination impatience innocence jealousy joy judgement justice kindness knowledge laughter leisure
    logic loneliness loyalty luck luxury malice melancholy memory mercy mischief misfortune modesty music mystery
    nostalgia obedience pardon patience peace perfection pleasure politeness poverty pride progress prudence punctuality
    reason refuge regret remorse revenge safety shame silence solitude sorrow splendour stubbornness suspicion sympathy
    tact thrift time tradition trouble trust truth vanity victory virtue wealth weather wisdom wit wonder
    worry"""
)

MONTHS = words("January February March April May June July August September October November December")
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
UNITS = words("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """A whole number from 0 to 999,999 in English words: 342 is "three hundred and forty-two"."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return TENS[tens] + (f"-{UNITS[units]}" if units else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{UNITS[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if 0 < rest < 100 else " "
    return f"{in_words(thousands)} thousand" + (joint + in_words(rest) if rest else "")


def ordinal(number: int) -> str:
    """1 is "1st", 12 is "12th", 23 is "23rd"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def roman(number: int) -> str:
    """A whole number from 1 to 3999 as a Roman numeral."""
    values = (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1)
    signs = ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I")
    text = ""
    for value, sign in zip(values, signs, strict=True):
        count, number = divmod(number, value)
        text += sign * count
    return text


def capitalized(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def article(word: str) -> str:
    """The word with "a" or "an" before it, by sound for the words of this module: an hour, a unicorn, an umbrella."""
    lower = word.lower()
    vowel = lower[0] in "aeiou" and not lower.startswith(("eu", "one", "uni", "use", "usu"))
    silent_h = lower.startswith(("heir", "honest", "honour", "hour"))
    return f"an {word}" if vowel or silent_h else f"a {word}"


_IRREGULAR_PLURALS = {
    "goose": "geese", "mouse": "mice", "ox": "oxen", "sheep": "sheep", "deer": "deer", "salmon": "salmon",
    "trout": "trout", "wolf": "wolves", "knife": "knives", "penknife": "penknives", "scarf": "scarves",
    "midwife": "midwives", "person": "people",
}  # fmt: skip


def plural(word: str) -> str:
    """The plural of a noun of this module."""
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if word.endswith("man"):
        return f"{word[:-2]}en"
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def times(count: int) -> str:
    """How often: once, twice, 3 times."""
    return ("never", "once", "twice")[count] if count < 3 else f"{count} times"


def listed(words: tuple[str, ...] | list[str]) -> str:
    """The words as an English list: "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def rounded(numerator: int, denominator: int) -> int:
    """The quotient of two natural numbers, rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)


def decimal(value: int, places: int) -> str:
    """A natural number of tenths (places 1), hundredths (2) and so on: 123456 with 2 places is "1,234.56"."""
    whole, fraction = divmod(value, 10**places)
    return f"{whole:,}.{fraction:0{places}d}"


def quotient(numerator: int, denominator: int, places: int) -> str:
    """The quotient of two natural numbers with so many decimal places, rounded half up."""
    return decimal(rounded(numerator * 10**places, denominator), places)
