"""Words and sentence frames that generated dialogues are filled with. Data, no logic."""

from __future__ import annotations


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


TOPICS = _list(
    "quantum chromodynamics, the stock market, ancient Sumerian law, tax returns, politics, "
    "football results, my neighbour, medieval music theory, heart surgery, the newest phones, "
    "celebrity news, organic chemistry, the theory of strings, deep sea fishing, wine, Napoleon, "
    "the French Revolution, knitting patterns, rocket engines, modern dance, bird migration, "
    "World War II, black holes, the Roman Empire, Albert Einstein, Java, relativity, opera, "
    "the French language, climate change, baroque painting, jazz, chess openings, philosophy, "
    "Kubernetes, cryptography, the human brain, volcanoes, dinosaurs, the Beatles, Mozart, "
    "machine translation, bitcoin, Buddhism, cooking, gardening, London, economics, poetry"
)
SYLLABLES = _list(
    "al, be, cor, da, el, fi, gor, ha, in, jo, ka, lo, mar, ne, or, pe, qui, ro, sa, ti, ul, ven, "
    "wi, xan, yo, zer, ta, mi, ru, no, ste, bra, lin, den, ford, son, ton, ia, us, er"
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = _list(
    "January, February, March, April, May, June, July, August, September, October, November, "
    "December"
)
ANIMALS = _list(
    "cat, dog, fox, bear, mouse, rabbit, bird, horse, duck, hen, frog, lion, turtle, goat"
)
NAMES = _list(
    "Mia, Tom, Leo, Anna, Ben, Ella, Max, Lily, Sam, Nora, Finn, Ruby, Otto, Ida, Alice, Bob, "
    "Carol, David, Emma, Frank, Grace, Henry, John, Kate, Lucy, Mark, Nick, Oliver, Paul, Sarah"
)
ADJECTIVES = _list(
    "small, brave, clever, quiet, kind, lazy, curious, young, little, gentle, hungry, modern, "
    "famous, cheap, green, heavy, wooden, electric, ancient, tropical"
)
PLACES = _list(
    "in the forest, by the river, on a green hill, near the sea, in an old barn, behind the mill"
)
THINGS = _list("a red ball, a golden key, an old map, a warm scarf, a shiny stone, a sweet apple")
GOODS = _list("apples, books, coins, pencils, eggs, stamps, marbles, oranges, cards, cakes, shells")
FEELINGS = _list("happy, proud, calm, glad, safe")
STORY = {
    "sentence": (
        (
            "The {adjective} {animal} sleeps {place}.",
            "A {adjective} {animal} runs {place}.",
            "One day the {animal} found {thing} {place}.",
        ),
    ),
    "story": (
        (
            "Once upon a time there was a {adjective} {animal} named {name}.",
            "A {adjective} {animal} named {name} lived {place}.",
        ),
        (
            "One day {name} found {thing}.",
            "One morning {name} went for a walk and saw {thing}.",
            "{name} was looking for {thing}.",
        ),
        (
            "A {friend} came along and asked to play.",
            "{name} showed it to a {friend}, and they became friends.",
            "A {friend} helped to carry it home.",
        ),
        ("In the end they were all {feeling}.", "That night {name} felt {feeling}."),
    ),
    "poem": (
        ("The {animal} walks {place},", "A {adjective} {animal} sat alone,"),
        ("and looks for {thing} there.", "and dreamed of {thing} at home."),
        ("The wind is soft, the light is low,", "The stars come out, the night is near,"),
        ("and home is where its friends all go.", "and everything is calm and clear."),
    ),
}
WORDS = _list(
    "apple, table, river, stone, green, cloud, house, paper, light, music, water, bread, chair, "
    "dream, earth, field, glass, heart, island, jacket, knife, lemon, mountain, night, ocean, "
    "piano, queen, road, silver, tree, umbrella, valley, window, yellow, zebra, bridge, candle, "
    "desk, engine, flower, garden, honey, iron, jungle, king, ladder, mirror, nest, orange, "
    "pencil, rabbit, salt, tiger, uncle, violin, wheel, anchor, arrow, autumn, baker, ball, "
    "banana, basket, beach, bell, bird, blanket, boat, book, bottle, bowl, box, branch, brick, "
    "brother, brush, bucket, button, cabin, cake, camera, camp, carpet, castle, cat, cave, "
    "cherry, circle, city, clock, coat, coffee, coin, corner, cotton, cow, crown, cup, dance, "
    "day, deer, dinner, doctor, dog, door, dragon, drum, duck, eagle, egg, evening, eye, face, "
    "family, farm, father, feather, finger, fire, fish, flag, floor, forest, fork, fox, friend, "
    "fruit, game, gate, ghost, gift, goat, gold, grape, grass, guitar, hammer, hand, harbour, "
    "hat, hill, horse, hour, ice, ink, jar, juice, key, kitchen, kite, lake, lamp, leaf, letter, "
    "lion, lock, map, market, meadow, milk, moon, morning, mother, mouse, needle, nose, nut, "
    "oak, oil, onion, owl, palace, park, pear, pen, pepper, picture, pig, pillow, plate, pocket, "
    "potato, rain, ring, rocket, roof, room, rope, rose, sail, sand, school, sea, shell, ship, "
    "shoe, sister, sky, snow, soap, sock, song, soup, spoon, spring, square, star, storm, story, "
    "street, sugar, summer, sun, tea, tent, thunder, tomato, tower, town, train, vase, village, "
    "voice, wagon, wall, weather, whale, wind, winter, wolf, wood, yard, year, zoo"
)
