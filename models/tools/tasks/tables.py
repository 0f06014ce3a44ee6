"""Small tables of general knowledge that the bundled model is taught. Data, no logic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Key-value rows with ways to ask for the value and to give it."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]


def _rows(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (item.split(":") for item in text.split(","))
    return tuple((key.strip(), value.strip()) for key, value in pairs)


TABLES = (
    Table(
        (
            "What is the capital of {key}?",
            "Which city is the capital of {key}?",
            "Capital of {key}?",
            "Name the capital of {key}.",
        ),
        ("The capital of {key} is {value}.", "{value} is the capital of {key}.", "{value}."),
        _rows(
            "France:Paris,Germany:Berlin,Italy:Rome,Spain:Madrid,Portugal:Lisbon,Austria:Vienna,"
            "Belgium:Brussels,Greece:Athens,Poland:Warsaw,Hungary:Budapest,Sweden:Stockholm,"
            "Norway:Oslo,Finland:Helsinki,Denmark:Copenhagen,Ireland:Dublin,Iceland:Reykjavik,"
            "Switzerland:Bern,Japan:Tokyo,China:Beijing,India:New Delhi,Russia:Moscow,"
            "Turkey:Ankara,Egypt:Cairo,Kenya:Nairobi,Ghana:Accra,Canada:Ottawa,Mexico:Mexico City,"
            "Brazil:Brasilia,Argentina:Buenos Aires,Chile:Santiago,Peru:Lima,Cuba:Havana,"
            "Australia:Canberra,Thailand:Bangkok,Vietnam:Hanoi,South Korea:Seoul,Iran:Tehran,"
            "Iraq:Baghdad,Nepal:Kathmandu,England:London,Scotland:Edinburgh,Ukraine:Kyiv,"
            "Romania:Bucharest,Bulgaria:Sofia,Croatia:Zagreb,Serbia:Belgrade,Morocco:Rabat"
        ),
    ),
    Table(
        ("What is the opposite of {key}?", "Opposite of {key}?", "Give me the opposite of {key}."),
        ("The opposite of {key} is {value}.", "{value}."),
        _rows(
            "hot:cold,big:small,fast:slow,up:down,left:right,day:night,happy:sad,open:closed,"
            "old:new,young:old,light:dark,early:late,high:low,long:short,full:empty,hard:soft,"
            "wet:dry,rich:poor,strong:weak,thick:thin,near:far,first:last,true:false,win:lose,"
            "buy:sell,push:pull,begin:end,loud:quiet,clean:dirty,heavy:light,sparse:dense"
        ),
    ),
    Table(
        (
            "What sound does a {key} make?",
            "What does a {key} say?",
            "Which sound does the {key} make?",
        ),
        ("A {key} says {value}.", "The {key} says {value}."),
        _rows(
            "dog:woof,cat:meow,cow:moo,duck:quack,sheep:baa,pig:oink,horse:neigh,lion:roar,"
            "frog:ribbit,bee:buzz,wolf:howl,snake:hiss,mouse:squeak,rooster:cock-a-doodle-doo"
        ),
    ),
    Table(
        ("What colour is {key}?", "What color is {key}?", "Tell me the colour of {key}."),
        ("It is {value}.", "The colour is {value}."),
        _rows(
            "the sky:blue,grass:green,snow:white,coal:black,blood:red,a banana:yellow,"
            "a carrot:orange,chocolate:brown,a lemon:yellow,a ripe tomato:red,the sun:yellow,"
            "an elephant:grey,a flamingo:pink,an emerald:green,a ruby:red"
        ),
    ),
    Table(
        (
            "What is the plural of {key}?",
            "Plural of {key}?",
            "How do you write more than one {key}?",
        ),
        ("The plural of {key} is {value}.", "{value}."),
        _rows(
            "cat:cats,dog:dogs,box:boxes,city:cities,child:children,mouse:mice,foot:feet,"
            "tooth:teeth,man:men,woman:women,knife:knives,leaf:leaves,baby:babies,bus:buses,"
            "fish:fish,goose:geese,house:houses,story:stories,person:people,sheep:sheep"
        ),
    ),
    Table(
        ("How many {key}?", "Do you know how many {key}?", "Tell me how many {key}."),
        ("There are {value}.", "The answer is {value}.", "{value}."),
        _rows(
            "days are in a week:7,months are in a year:12,hours are in a day:24,"
            "minutes are in an hour:60,seconds are in a minute:60,days are in a year:365,"
            "legs does a spider have:8,legs does a dog have:4,legs does an insect have:6,"
            "sides does a triangle have:3,sides does a square have:4,"
            "letters are in the alphabet:26,centimetres are in a metre:100,"
            "metres are in a kilometre:1000,grams are in a kilogram:1000,continents are there:7,"
            "planets are in the solar system:8,bits are in a byte:8"
        ),
    ),
    Table(
        ("{key}?", "Can you tell me: {key}?", "I want to know: {key}?"),
        ("{value}.",),
        _rows(
            "What do bees make:Bees make honey,What do cows eat:Cows eat grass,"
            "Where do fish live:Fish live in water,What do we breathe:We breathe air,"
            "What is ice:Ice is frozen water,What falls from clouds:Rain falls from clouds,"
            "What shines at night:The moon and the stars shine at night,"
            "What do plants need:Plants need light and water,"
            "What is a book for:A book is for reading,What is a knife for:A knife is for cutting,"
            "Who wrote Hamlet:William Shakespeare wrote Hamlet,"
            "What is the largest planet:Jupiter is the largest planet,"
            "What is the closest star:The sun is the closest star to the earth,"
            "What is the longest river:The Nile is often called the longest river,"
            "What is the highest mountain:Mount Everest is the highest mountain,"
            "What is the largest ocean:The Pacific is the largest ocean,"
            "What is Python:Python is a programming language,"
            "What is Rust:Rust is a programming language for fast and safe programs,"
            "What is Linux:Linux is a free operating system,"
            "What is a GPU:A GPU is a processor that does many small calculations at once,"
            "What is a CPU:A CPU is the main processor of a computer,"
            "What is a token:A token is a piece of text that a language model reads or writes,"
            "What is a language model:A language model is a program that predicts the next token "
            "of a text,What is a neural network:A neural network is a function made of many simple "
            "units called neurons"
        ),
    ),
)
CAPITALS = tuple(city for _, city in TABLES[0].rows)
