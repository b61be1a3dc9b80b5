"""Small tables of facts about the real world that generated text states. Data only.

Atomic weights are the standard ones (IUPAC, abridged); planets are from NASA's planetary fact sheet.
"""

from typing import NamedTuple

from alpha.datagen_words import words


class Element(NamedTuple):
    """A chemical element; `weight` in thousandths of a unified atomic mass unit."""

    name: str
    symbol: str
    number: int
    weight: int
    kind: str


class Planet(NamedTuple):
    """A planet: mean distance from the Sun in 0.1 million km, diameter in km, orbital period in 0.1 days."""

    name: str
    distance: int
    diameter: int
    period: int


ELEMENTS = tuple(
    Element(name, symbol, int(number), int(weight), kind.replace("_", " "))
    for name, symbol, number, weight, kind in (
        line.split()
        for line in """hydrogen H 1 1008 gas
helium He 2 4003 noble_gas
lithium Li 3 6940 metal
beryllium Be 4 9012 metal
boron B 5 10810 metalloid
carbon C 6 12011 nonmetal
nitrogen N 7 14007 gas
oxygen O 8 15999 gas
fluorine F 9 18998 gas
neon Ne 10 20180 noble_gas
sodium Na 11 22990 metal
magnesium Mg 12 24305 metal
aluminium Al 13 26982 metal
silicon Si 14 28085 metalloid
phosphorus P 15 30974 nonmetal
sulfur S 16 32060 nonmetal
chlorine Cl 17 35450 gas
argon Ar 18 39950 noble_gas
potassium K 19 39098 metal
calcium Ca 20 40078 metal
scandium Sc 21 44956 metal
titanium Ti 22 47867 metal
vanadium V 23 50942 metal
chromium Cr 24 51996 metal
manganese Mn 25 54938 metal
iron Fe 26 55845 metal
cobalt Co 27 58933 metal
nickel Ni 28 58693 metal
copper Cu 29 63546 metal
zinc Zn 30 65380 metal
gallium Ga 31 69723 metal
germanium Ge 32 72630 metalloid
arsenic As 33 74922 metalloid
selenium Se 34 78971 nonmetal
bromine Br 35 79904 liquid
krypton Kr 36 83798 noble_gas
rubidium Rb 37 85468 metal
strontium Sr 38 87620 metal
silver Ag 47 107868 metal
cadmium Cd 48 112414 metal
tin Sn 50 118710 metal
iodine I 53 126904 nonmetal
xenon Xe 54 131293 noble_gas
caesium Cs 55 132905 metal
barium Ba 56 137327 metal
tungsten W 74 183840 metal
platinum Pt 78 195084 metal
gold Au 79 196967 metal
mercury Hg 80 200592 liquid_metal
lead Pb 82 207200 metal
bismuth Bi 83 208980 metal
uranium U 92 238029 metal""".splitlines()
    )
)
ELEMENT = {element.symbol: element for element in ELEMENTS}

COMPOUNDS = (  # name, formula as (symbol, atoms)
    ("water", (("H", 2), ("O", 1))),
    ("carbon dioxide", (("C", 1), ("O", 2))),
    ("carbon monoxide", (("C", 1), ("O", 1))),
    ("methane", (("C", 1), ("H", 4))),
    ("ammonia", (("N", 1), ("H", 3))),
    ("sodium chloride", (("Na", 1), ("Cl", 1))),
    ("potassium chloride", (("K", 1), ("Cl", 1))),
    ("calcium carbonate", (("Ca", 1), ("C", 1), ("O", 3))),
    ("calcium oxide", (("Ca", 1), ("O", 1))),
    ("magnesium oxide", (("Mg", 1), ("O", 1))),
    ("sulfuric acid", (("H", 2), ("S", 1), ("O", 4))),
    ("nitric acid", (("H", 1), ("N", 1), ("O", 3))),
    ("hydrogen peroxide", (("H", 2), ("O", 2))),
    ("hydrogen chloride", (("H", 1), ("Cl", 1))),
    ("hydrogen sulfide", (("H", 2), ("S", 1))),
    ("sulfur dioxide", (("S", 1), ("O", 2))),
    ("silicon dioxide", (("Si", 1), ("O", 2))),
    ("iron(III) oxide", (("Fe", 2), ("O", 3))),
    ("aluminium oxide", (("Al", 2), ("O", 3))),
    ("titanium dioxide", (("Ti", 1), ("O", 2))),
    ("zinc oxide", (("Zn", 1), ("O", 1))),
    ("copper sulfate", (("Cu", 1), ("S", 1), ("O", 4))),
    ("potassium nitrate", (("K", 1), ("N", 1), ("O", 3))),
    ("sodium bicarbonate", (("Na", 1), ("H", 1), ("C", 1), ("O", 3))),
    ("silver nitrate", (("Ag", 1), ("N", 1), ("O", 3))),
    ("glucose", (("C", 6), ("H", 12), ("O", 6))),
    ("sucrose", (("C", 12), ("H", 22), ("O", 11))),
    ("ethanol", (("C", 2), ("H", 6), ("O", 1))),
    ("acetic acid", (("C", 2), ("H", 4), ("O", 2))),
    ("benzene", (("C", 6), ("H", 6))),
    ("propane", (("C", 3), ("H", 8))),
    ("caffeine", (("C", 8), ("H", 10), ("N", 4), ("O", 2))),
)

PLANETS = (
    Planet("Mercury", 579, 4879, 880),
    Planet("Venus", 1082, 12104, 2247),
    Planet("Earth", 1496, 12756, 3652),
    Planet("Mars", 2280, 6792, 6870),
    Planet("Jupiter", 7785, 142984, 43310),
    Planet("Saturn", 14320, 120536, 107470),
    Planet("Uranus", 28670, 51118, 305890),
    Planet("Neptune", 45150, 49528, 598000),
)

COUNTRIES = tuple(  # country, capital, continent
    tuple(part.replace("_", " ") for part in line.split())
    for line in """Argentina Buenos_Aires South_America
Australia Canberra Oceania
Austria Vienna Europe
Bangladesh Dhaka Asia
Belgium Brussels Europe
Brazil Brasilia South_America
Bulgaria Sofia Europe
Canada Ottawa North_America
Chile Santiago South_America
China Beijing Asia
Colombia Bogota South_America
Croatia Zagreb Europe
Cuba Havana North_America
Denmark Copenhagen Europe
Ecuador Quito South_America
Egypt Cairo Africa
Estonia Tallinn Europe
Ethiopia Addis_Ababa Africa
Finland Helsinki Europe
France Paris Europe
Germany Berlin Europe
Ghana Accra Africa
Greece Athens Europe
Hungary Budapest Europe
Iceland Reykjavik Europe
India New_Delhi Asia
Iran Tehran Asia
Iraq Baghdad Asia
Ireland Dublin Europe
Italy Rome Europe
Jamaica Kingston North_America
Japan Tokyo Asia
Kenya Nairobi Africa
Latvia Riga Europe
Lithuania Vilnius Europe
Mexico Mexico_City North_America
Mongolia Ulaanbaatar Asia
Morocco Rabat Africa
Nepal Kathmandu Asia
New_Zealand Wellington Oceania
Norway Oslo Europe
Pakistan Islamabad Asia
Peru Lima South_America
Philippines Manila Asia
Poland Warsaw Europe
Portugal Lisbon Europe
Romania Bucharest Europe
Senegal Dakar Africa
Slovakia Bratislava Europe
Slovenia Ljubljana Europe
South_Korea Seoul Asia
Spain Madrid Europe
Sweden Stockholm Europe
Thailand Bangkok Asia
Tunisia Tunis Africa
Uganda Kampala Africa
Ukraine Kyiv Europe
Uruguay Montevideo South_America
Vietnam Hanoi Asia
Zambia Lusaka Africa
Zimbabwe Harare Africa""".splitlines()
)

OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in words("""hot/cold big/small fast/slow high/low old/new open/closed full/empty light/heavy loud/quiet
        wet/dry hard/soft near/far early/late rich/poor strong/weak thick/thin wide/narrow clean/dirty true/false
        happy/sad deep/shallow sharp/blunt smooth/rough brave/afraid up/down inside/outside above/below before/after
        always/never first/last day/night summer/winter north/south east/west left/right push/pull buy/sell give/take
        win/lose remember/forget begin/end arrive/leave ask/answer laugh/cry""")
)
SOUNDS = tuple(
    tuple(pair.split("/"))
    for pair in words("""dog/barks cat/purrs cow/moos horse/neighs sheep/bleats pig/grunts lion/roars wolf/howls
        frog/croaks duck/quacks owl/hoots bee/buzzes snake/hisses donkey/brays mouse/squeaks crow/caws goose/honks
        hen/clucks""")
)
LEGS = tuple(
    (animal, int(legs))
    for animal, legs in (
        pair.split("/")
        for pair in words("""dog/4 cat/4 horse/4 cow/4 hen/2 duck/2 eagle/2 bee/6 ant/6 beetle/6 spider/8 scorpion/8
            frog/4 crab/10 person/2 swan/2 fox/4 moth/6""")
    )
)
WORK = tuple(
    tuple(line.strip().split(" / "))
    for line in """baker / bakes bread
carpenter / builds things from wood
blacksmith / shapes hot iron
tailor / sews clothes
farmer / grows crops and keeps animals
librarian / looks after books
potter / makes pots from clay
shepherd / looks after sheep
beekeeper / keeps bees for their honey
fisherman / catches fish
glassblower / shapes molten glass
mason / builds with stone
miller / grinds grain into flour
cobbler / mends shoes
clockmaker / makes and mends clocks
cartographer / draws maps
astronomer / studies the stars
botanist / studies plants
geologist / studies rocks
brewer / makes beer
weaver / makes cloth on a loom
thatcher / covers roofs with straw
locksmith / makes and opens locks
ferryman / takes people across a river
gardener / looks after gardens
printer / prints books and papers
saddler / makes saddles
pilot / steers ships or aeroplanes
photographer / takes pictures
translator / turns words of one language into another""".splitlines()
)
MIXTURES = (
    ("red", "yellow", "orange"),
    ("blue", "yellow", "green"),
    ("red", "blue", "purple"),
    ("black", "white", "grey"),
    ("red", "white", "pink"),
)
