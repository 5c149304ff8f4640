"""Seeded grammar of smart-home requests and the function calls that answer them.

The example needs a data set that is real enough to train and to judge a small model on, free to ship, and
the same on every machine. So this module writes it: each row is a one-turn chat in which a user asks for
something in one of many wordings and the assistant answers with one short sentence and one line of JSON, the
call to make. Slot values (rooms, numbers, times, names) appear literally in the request, so the task is to
recognise the function and to copy its arguments.

Every request belongs to exactly one split, decided by a hash of its normalised text and by nothing else. A
request of the held-out split is therefore never seen in training, whatever the seed or the number of rows.

Only the standard library is used:

    python examples/smart_home/grammar.py --rows 2000 --seed 7 --split train --out rows.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

Split = Literal["train", "heldout"]
Value = str | int
Message = dict[str, str]
Row = dict[str, list[Message]]
Item = TypeVar("Item")

SPLITS: tuple[Split, ...] = ("train", "heldout")
HELDOUT_SHARE = 0.1
TYPO_SHARE = 0.06
CAPITAL_SHARE = 0.3
_MAX_TRIES_PER_ROW = 2000

ROOMS = (
    "kitchen", "living room", "bedroom", "bathroom", "hallway", "dining room", "office", "garage",
    "nursery", "guest room", "basement", "attic", "laundry room", "balcony",
)  # fmt: skip
DOORS = (
    "front door", "back door", "garage door", "patio door", "side door", "cellar door", "garden gate",
)  # fmt: skip
COLORS = (
    "red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "warm white", "turquoise",
    "violet", "gold", "cyan", "magenta",
)  # fmt: skip
SPEEDS = ("low", "medium", "high")
SCENES = (
    "movie night", "good night", "party", "dinner", "reading", "morning", "away", "relax", "work",
    "romantic",
)  # fmt: skip
DAYS = (
    "today", "tomorrow", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday",
)  # fmt: skip
UNITS = ("seconds", "minutes", "hours")
TIMER_LABELS = (
    "pasta", "eggs", "pizza", "tea", "laundry", "bread", "rice", "workout", "nap", "homework", "cake",
    "roast",
)  # fmt: skip
ARTISTS = (
    "queen", "abba", "the beatles", "miles davis", "adele", "johnny cash", "bob marley", "david bowie",
    "coldplay", "nina simone", "radiohead", "fleetwood mac", "pink floyd", "daft punk", "bjork", "mozart",
    "bach", "chopin", "beethoven", "taylor swift", "stevie wonder", "elton john", "madonna", "prince",
    "metallica", "dolly parton",
)  # fmt: skip
MOODS = ("slow", "happy", "calm", "loud", "old", "new", "soft", "sad")
GENRES = (
    "jazz", "rock", "pop", "blues", "soul", "techno", "folk", "country", "opera", "reggae", "hip hop",
    "metal",
)  # fmt: skip
MUSIC = ARTISTS + GENRES + tuple(f"{mood} {genre}" for mood in MOODS for genre in GENRES)
DRINKS = (
    "espresso", "cappuccino", "latte", "americano", "flat white", "mocha", "macchiato", "black coffee",
)  # fmt: skip
FOODS = (
    "milk", "eggs", "butter", "bread", "apples", "bananas", "tomatoes", "rice", "pasta", "cheese",
    "coffee", "tea", "sugar", "flour", "salt", "onions", "potatoes", "carrots", "yogurt", "chicken",
    "salmon", "lemons", "honey", "olive oil", "peas", "beans", "spinach", "mushrooms", "cereal",
    "chocolate", "orange juice", "water", "toilet paper", "dish soap", "batteries", "light bulbs",
    "cat food", "paper towels", "toothpaste", "napkins",
)  # fmt: skip
QUALITIES = ("organic", "fresh", "frozen", "cheap", "large", "small", "local")
GOODS = FOODS + tuple(f"{quality} {food}" for quality in QUALITIES for food in FOODS[:31])
CITIES = (
    "paris", "london", "berlin", "madrid", "rome", "vienna", "oslo", "tokyo", "boston", "chicago",
    "seattle", "denver", "toronto", "sydney", "lisbon", "dublin", "prague", "athens", "cairo", "delhi",
    "new york", "zurich", "munich", "hamburg", "lyon", "milan", "geneva", "warsaw", "helsinki", "austin",
)  # fmt: skip
PEOPLE = (
    "anna", "my mother", "my boss", "david", "grandma", "the neighbours", "maria", "tom", "my sister",
    "dad",
)  # fmt: skip
TOPICS = (
    "cats", "robots", "the moon", "football", "history", "dinosaurs", "the ocean", "politics", "trains",
    "art",
)  # fmt: skip
TIMES = (
    tuple(f"{hour} {half}" for hour in range(1, 13) for half in ("am", "pm"))
    + tuple(f"{hour}:{minute:02d} {half}" for hour in range(1, 13) for minute in range(5, 60, 5)
            for half in ("am", "pm"))
    + tuple(f"{hour}:{minute:02d}" for hour in range(13, 24) for minute in range(0, 60, 5))
)  # fmt: skip

MACROS = {
    "light": ("[the {room} light|the {room} lights|the light in the {room}|the lights in the {room}|the {room} lamp]"),
    "all_lights": "[all the lights|every light|all lights|the lights everywhere|the lights in every room]",
    "heat": ("[the {room} thermostat|the thermostat in the {room}|the {room} heating|the heating in the {room}]"),
    "blinds": "[the {room} blinds|the blinds in the {room}|the {room} shades|the shades in the {room}]",
    "fan": "[the {room} fan|the fan in the {room}|the ceiling fan in the {room}]",
    "music": "[the music in the {room}|the {room} speaker|the {room} music|the song in the {room}]",
    "tv": "[the {room} tv|the tv in the {room}|the television in the {room}|the {room} television]",
    "degrees": "[{temperature} degrees|{temperature}|{temperature} degrees celsius]",
    "percent": "[{percent} percent|{percent}%]",
    "list": "[the shopping list|my shopping list|the grocery list|my list]",
    "set": "[set|change|put|adjust|turn]",
}

# Text before and after a request. Empty strings are repeated to be drawn more often.
_COMMAND_OPENERS = (
    "", "", "", "please ", "can you ", "could you ", "could you please ", "would you ", "hey, ",
    "hey house, ", "ok house, ", "assistant, ", "i want you to ", "i need you to ", "now ",
    "hi, can you ", "will you please ", "go ahead and ", "i would like you to ", "hello, please ",
)  # fmt: skip
_STATEMENT_OPENERS = (
    "", "", "", "hey, ", "hi, ", "ok, ", "hello house, ", "assistant, ", "so, ", "please, ",
)  # fmt: skip
_QUESTION_OPENERS = (
    "", "", "", "hey, ", "tell me, ", "quick question, ", "do you know, ", "please tell me, ", "hello, ",
    "assistant, ", "i wonder, ",
)  # fmt: skip
_CLOSERS = (
    "", "", "", "", " please", " now", " for me", " thanks", " right away", " thank you",
    " for me please",
)  # fmt: skip
_PLAIN_CLOSERS = ("", "", "", " please", " thanks", " thank you")
_POLITE = re.compile(r"\b(please|thanks|thank you|could you)\b")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_MACRO = re.compile(r"@(\w+)")


@dataclass(frozen=True)
class Intent:
    """One function of the home, its wordings and its answer.

    Attributes:
        name: Function name written into the call.
        templates: Wordings. ``[a|b]`` is a choice, ``@macro`` a shared phrase, ``{slot}`` a slot value. A
            leading ``~`` marks a statement and a leading ``?`` a question; the others are commands.
        reply: Sentence that precedes the call, with slots.
        slots: Pool of values per argument.
        fixed: Arguments that the wording implies without naming a value.
        share: Relative frequency.
        obliging: Whether a polite request is answered with "Sure".
    """

    name: str
    templates: tuple[str, ...]
    reply: str
    slots: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    fixed: Mapping[str, Value] = field(default_factory=dict)
    share: float = 1.0
    obliging: bool = True


INTENTS: tuple[Intent, ...] = (
    Intent(
        "light_turn_on",
        (
            "[turn|switch|put|flip] on @light",
            "[turn|switch|put] @light on",
            "~i need [some light|the light] in the {room}",
            "~it is [too dark|so dark|very dark] in the {room}",
            "~[{room} lights on|lights on in the {room}]",
            "light up the {room}",
        ),
        "Turning on the {room} light.",
        {"room": ROOMS},
    ),
    Intent(
        "light_turn_on",
        ("[turn|switch|put] on @all_lights", "[turn|switch] @all_lights on", "light up the whole house"),
        "Turning on all lights.",
        fixed={"room": "all"},
        share=0.2,
    ),
    Intent(
        "light_turn_off",
        (
            "[turn|switch|shut] off @light",
            "[turn|switch] @light off",
            "~[{room} lights off|lights off in the {room}]",
            "kill @light",
            "~nobody is in the {room}, [lights off|turn off the light]",
            "make the {room} dark",
        ),
        "Turning off the {room} light.",
        {"room": ROOMS},
    ),
    Intent(
        "light_turn_off",
        ("[turn|switch|shut] off @all_lights", "[turn|switch] @all_lights off", "make the whole house dark"),
        "Turning off all lights.",
        fixed={"room": "all"},
        share=0.2,
    ),
    Intent(
        "light_set_brightness",
        (
            "[dim|set|bring|adjust|change] @light to @percent",
            "[set|change|adjust] the brightness in the {room} to @percent",
            "[set|put] the {room} brightness [to|at] @percent",
            "~{room} lights at @percent",
            "make @light @percent bright",
            "~i want @light at @percent",
        ),
        "Setting the {room} light to {percent} percent.",
        {"room": ROOMS, "percent": range(1, 101)},
        share=1.3,
    ),
    Intent(
        "light_set_color",
        (
            "[make|turn] @light {color}",
            "[set|change|switch] @light to {color}",
            "[set|change] the [color|colour] of @light to {color}",
            "~{color} light in the {room}",
            "~i want {color} [light|lights] in the {room}",
            "give me {color} light in the {room}",
        ),
        "Setting the {room} light to {color}.",
        {"room": ROOMS, "color": COLORS},
    ),
    Intent(
        "thermostat_set",
        (
            "@set @heat to @degrees",
            "[heat|warm|cool] the {room} to @degrees",
            "make [the {room}|it in the {room}] @degrees",
            "[set|change|put] the temperature in the {room} [to|at] @degrees",
            "~i want @degrees in the {room}",
            "~{room} temperature to @degrees",
        ),
        "Setting the {room} to {temperature} degrees.",
        {"room": ROOMS, "temperature": range(10, 31)},
        share=1.2,
    ),
    Intent(
        "thermostat_query",
        (
            "?[what is|what's] the temperature in the {room}",
            "?how [warm|cold|hot] is [it in the {room}|the {room}]",
            "[check|read|tell me] the [temperature in the {room}|{room} temperature]",
            "?is it [warm|cold|hot] in the {room}",
            "?what does @heat say",
            "~{room} temperature",
        ),
        "Checking the temperature in the {room}.",
        {"room": ROOMS},
    ),
    Intent(
        "blinds_open",
        (
            "[open|raise|lift|pull up] @blinds",
            "~i want @blinds [open|up]",
            "let [some sun|the sun|daylight] into the {room}",
            "~[{room} blinds up|blinds up in the {room}]",
        ),
        "Opening the {room} blinds.",
        {"room": ROOMS},
    ),
    Intent(
        "blinds_close",
        (
            "[close|lower|shut|pull down] @blinds",
            "~i want @blinds [closed|down|shut]",
            "~too much sun in the {room}",
            "~[{room} blinds down|blinds down in the {room}]",
        ),
        "Closing the {room} blinds.",
        {"room": ROOMS},
    ),
    Intent(
        "door_lock",
        (
            "[lock|lock up|bolt|secure] the {door}",
            "make sure the {door} is locked",
            "~i forgot to lock the {door}",
            "~the {door} should be locked",
            "~lock on the {door}",
        ),
        "Locking the {door}.",
        {"door": DOORS},
        share=0.8,
    ),
    Intent(
        "door_unlock",
        (
            "[unlock|open up] the {door}",
            "make sure the {door} is unlocked",
            "~the {door} should be unlocked",
            "let [the guests|my friend|the plumber|the kids|me] in through the {door}",
            "~unlock the {door}, i am home",
        ),
        "Unlocking the {door}.",
        {"door": DOORS},
        share=0.8,
    ),
    Intent(
        "fan_set",
        (
            "@set @fan to {speed}",
            "[run|start] @fan [on|at] {speed} [speed|]",
            "~i want @fan on {speed}",
            "[turn|switch] on @fan [at|on] {speed} [speed|]",
            "~{room} fan on {speed}",
        ),
        "Setting the {room} fan to {speed}.",
        {"room": ROOMS, "speed": SPEEDS},
    ),
    Intent(
        "timer_start",
        (
            "[set|start|make] a timer for {amount} {unit}",
            "[time|count down] {amount} {unit}",
            "~timer for {amount} {unit}",
            "remind me in {amount} {unit}",
            "~{amount} {unit} [timer|on the clock]",
            "wake me up in {amount} {unit}",
        ),
        "Starting a timer for {amount} {unit}.",
        {"amount": range(2, 91), "unit": UNITS},
        share=0.9,
    ),
    Intent(
        "timer_start",
        (
            "[set|start|make] a {label} timer for {amount} {unit}",
            "[set|start] a timer for the {label} for {amount} {unit}",
            "~{label} timer, {amount} {unit}",
            "[time|count down] {amount} {unit} for the {label}",
            "~the {label} needs {amount} {unit}, start a timer",
        ),
        "Starting a {label} timer for {amount} {unit}.",
        {"amount": range(2, 91), "label": TIMER_LABELS, "unit": UNITS},
        share=0.7,
    ),
    Intent(
        "alarm_set",
        (
            "[set|make|create] an alarm [for|at] {time} {day}",
            "wake me [up |]{day} at {time}",
            "wake me [up |]at {time} {day}",
            "~alarm {day} at {time}",
            "~i [need|have|want] to get up at {time} {day}",
            "get me out of bed at {time} {day}",
        ),
        "Setting an alarm for {time} {day}.",
        {"day": DAYS, "time": TIMES},
        share=1.3,
    ),
    Intent(
        "music_play",
        (
            "play [some |]{music} in the {room}",
            "put on [some |]{music} in the {room}",
            "[start|stream] {music} [on the {room} speaker|in the {room}]",
            "~i want to hear {music} in the {room}",
            "~{music} in the {room}",
            "let me [hear|listen to] {music} in the {room}",
        ),
        "Playing {music} in the {room}.",
        {"music": MUSIC, "room": ROOMS},
        share=1.3,
    ),
    Intent(
        "music_pause",
        (
            "[pause|stop|mute|silence] @music",
            "~[music off|no music] in the {room}",
            "~no more songs in the {room}",
            "turn off @music",
            "~enough music in the {room}",
        ),
        "Pausing the music in the {room}.",
        {"room": ROOMS},
        share=0.9,
    ),
    Intent(
        "music_next",
        (
            "[skip|change] @music",
            "[play|go to|jump to] the next [song|track] in the {room}",
            "~next [song|track] in the {room}",
            "skip this [song|track] in the {room}",
            "~i do not like this [song|track] in the {room}",
        ),
        "Playing the next song in the {room}.",
        {"room": ROOMS},
        share=0.9,
    ),
    Intent(
        "volume_set",
        (
            "@set the volume in the {room} to @percent",
            "@set the {room} volume to @percent",
            "@set the {room} speaker to @percent volume",
            "~volume [at|to] @percent in the {room}",
            "turn @music [up|down] to @percent",
        ),
        "Setting the {room} volume to {percent} percent.",
        {"percent": range(0, 101), "room": ROOMS},
        share=1.2,
    ),
    Intent(
        "tv_power",
        (
            "[turn|switch] {state} @tv",
            "[turn|switch] @tv {state}",
            "~{room} [tv|television] {state}",
            "~[tv|television] {state} in the {room}",
            "~i want @tv {state}",
        ),
        "Turning {state} the {room} tv.",
        {"room": ROOMS, "state": ("on", "off")},
    ),
    Intent(
        "tv_channel",
        (
            "[put|switch|change|set|turn] @tv to channel {channel}",
            "[show|play] channel {channel} on @tv",
            "~channel {channel} on @tv",
            "~i want to watch channel {channel} in the {room}",
        ),
        "Switching the {room} tv to channel {channel}.",
        {"channel": range(1, 200), "room": ROOMS},
        share=1.2,
    ),
    Intent(
        "vacuum_start",
        (
            "[vacuum|hoover|clean] the {room}",
            "[send|start] the [vacuum|robot|hoover] in the {room}",
            "[send|get] the [vacuum|robot] to [clean |]the {room}",
            "~the {room} [is dirty|is dusty|needs a clean|is a mess]",
            "~there are crumbs in the {room}",
        ),
        "Vacuuming the {room}.",
        {"room": ROOMS},
    ),
    Intent(
        "coffee_make",
        (
            "[make|brew|prepare|pour] {cups} cups of {drink}",
            "make {cups} {drink}",
            "~i [need|want|would like] {cups} cups of {drink}",
            "[make|brew] {drink} for {cups} [people|guests]",
            "~{drink} for {cups} [people|guests]",
            "~{cups} cups of {drink}",
        ),
        "Making {cups} cups of {drink}.",
        {"cups": range(2, 13), "drink": DRINKS},
        share=0.8,
    ),
    Intent(
        "coffee_make",
        (
            "[make|brew|prepare] [me |]a [cup of |]{drink}",
            "~i [need|want|would like] a [cup of |]{drink}",
            "~a [cup of |]{drink}",
            "get me a [cup of |]{drink}",
        ),
        "Making 1 cup of {drink}.",
        {"drink": DRINKS},
        fixed={"cups": 1},
        share=0.3,
    ),
    Intent(
        "scene_activate",
        (
            "[start|activate|set|run|turn on] the {scene} scene",
            "[start|activate|switch to|go to] {scene} mode",
            "~{scene} [mode|scene]",
            "~it is time for the {scene} scene",
            "[prepare|set up] the [house|home] for {scene}",
            "get the [house|home] ready for {scene}",
        ),
        "Starting the {scene} scene.",
        {"scene": SCENES},
        share=0.8,
    ),
    Intent(
        "shopping_add",
        (
            "[add|put] {item} [to|on] @list",
            "~we [need|are out of|have no] {item}",
            "~[buy|get] {item}",
            "remember to buy {item}",
            "~{item} on @list",
            "note that we need {item}",
        ),
        "Adding {item} to the shopping list.",
        {"item": GOODS},
        share=0.8,
    ),
    Intent(
        "shopping_add",
        (
            "[add|put] {quantity} {item} [to|on] @list",
            "~we need {quantity} {item}",
            "~[buy|get] {quantity} {item}",
            "remember to buy {quantity} {item}",
            "~{quantity} {item} on @list",
            "[add|put] {quantity} packs of {item} on @list",
        ),
        "Adding {quantity} {item} to the shopping list.",
        {"item": GOODS, "quantity": range(2, 25)},
        share=0.9,
    ),
    Intent(
        "weather_query",
        (
            "?[what is|what's|how is] the weather [like |]in {city} {day}",
            "?will it [rain|snow|be sunny] in {city} {day}",
            "[check|get|show me|tell me] the [weather|forecast] for {city} {day}",
            "~weather {day} in {city}",
            "?do i need [an umbrella|a coat|sunglasses] in {city} {day}",
            "?how [warm|cold|hot] will it be {day} in {city}",
        ),
        "Checking the weather in {city} for {day}.",
        {"city": CITIES, "day": DAYS},
        share=1.1,
    ),
    Intent(
        "no_action",
        (
            "[order|get me] a pizza from {city}",
            "book a [flight|hotel|train] [to|in] {city} for {day}",
            "[call|phone|ring] {person}",
            "[send|write] [an email|a letter|a message] to {person}",
            "buy {quantity} tickets for {day}",
            "[start|empty] the [dishwasher|washing machine|dryer]",
            "[translate this|write a poem] for {person}",
            "drive me to {city} {day}",
            "[wash|park] the car {day}",
            "[walk|feed] the [dog|cat|fish]",
            "water the [plants|garden|flowers]",
            "pay {person} {quantity} dollars",
            "cook [dinner|lunch] for {person}",
        ),
        "Sorry, I cannot do that.",
        {"city": CITIES, "day": DAYS, "person": PEOPLE, "quantity": range(2, 100)},
        fixed={"reason": "unsupported"},
        share=0.9,
        obliging=False,
    ),
    Intent(
        "no_action",
        (
            "?how are you [today|doing|feeling|]",
            "?what do you think about {topic}",
            "tell me [a joke|a story] about {topic}",
            "?do you [like|know about|dream of] {topic}",
            "~[good morning|good evening|good afternoon|nice to meet you]",
            "?[who are you|what is your name|are you a robot|how old are you]",
            "~i am [bored|tired|happy|hungry] today",
            "~you are [great|funny|smart|the best]",
            "~i [love|like|hate] {topic}",
            "sing a song about {topic}",
            "?what is {quantity} plus {number}",
            "~{person} [says hello|likes {topic}]",
            "talk to me about {topic}",
            "~[thank you|thanks] for your help",
        ),
        "I only look after the home.",
        {"topic": TOPICS, "person": PEOPLE, "quantity": range(1, 100), "number": range(1, 100)},
        fixed={"reason": "small_talk"},
        share=0.8,
        obliging=False,
    ),
)
FUNCTIONS: tuple[str, ...] = tuple(dict.fromkeys(intent.name for intent in INTENTS))


def normalise(request: str) -> str:
    """Returns the request in lower case, without punctuation at word ends and with single spaces."""
    words = (word.strip(".,!?;") for word in request.casefold().split())
    return " ".join(word for word in words if word)


def split_of(request_text: str) -> Split:
    """Names the split a request belongs to.

    Args:
        request_text: The user's words; case, spacing and end punctuation do not matter.

    Returns:
        ``"heldout"`` for a fixed tenth of all requests and ``"train"`` for the others.
    """
    digest = hashlib.sha256(normalise(request_text).encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") < HELDOUT_SHARE * 2**32 else "train"


def parse_answer(answer: str) -> dict[str, object] | None:
    """Reads the call out of an assistant answer.

    Args:
        answer: Answer text: a sentence, a newline and the call on one line.

    Returns:
        The call with keys ``name`` and ``arguments``, or None if there is no such call.
    """
    try:
        call = json.loads(answer.strip().rpartition("\n")[2])
    except ValueError:
        return None
    return call if isinstance(call, dict) and set(call) == {"name", "arguments"} else None


def generate(rows: int, seed: int, split: Split = "train") -> Iterator[Row]:
    """Yields distinct chat rows of one split.

    Args:
        rows: Number of rows.
        seed: Seed; equal arguments give equal rows on every platform.
        split: Split to which every request belongs.

    Yields:
        Rows ``{"messages": [user, assistant]}``; no two have the same normalised request.

    Raises:
        ValueError: If ``rows`` or ``split`` is not valid or the grammar cannot supply so many rows.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = random.Random(seed)
    seen: set[str] = set()
    for _ in range(rows):
        for _ in range(_MAX_TRIES_PER_ROW):
            request, answer = _sample(rng)
            key = normalise(request)
            if key not in seen and split_of(request) == split:
                break
        else:
            raise ValueError(f"the grammar ran out of new {split} requests after {len(seen)} rows")
        seen.add(key)
        yield {"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]}


def _sample(rng: random.Random) -> tuple[str, str]:
    """Draws one request and its answer from the grammar, whatever the split."""
    intent = _pick_intent(rng)
    pools = {name: _pick(pool, rng) for name, pool in intent.slots.items()}
    template = _pick(intent.templates, rng)
    core = _expand(template.lstrip("~?"), rng)
    spoken = {name: str(value) for name, value in pools.items()}
    core = " ".join(core.format(**spoken).split())
    slot_words = {word for value in spoken.values() for word in value.split()}
    request = _wrap(core, template[0], rng)
    polite = _POLITE.search(request) is not None
    request = _finish(_mistype(request, slot_words, rng), rng)
    reply = intent.reply.format(**spoken)
    if polite and intent.obliging:
        reply = f"Sure, {reply[0].lower()}{reply[1:]}"
    if intent.name == "no_action":
        arguments: dict[str, Value] = dict(intent.fixed)
    else:
        arguments = {**pools, **intent.fixed}
    call = {"name": intent.name, "arguments": dict(sorted(arguments.items()))}
    return request, f"{reply}\n{json.dumps(call)}"


def _pick(items: Sequence[Item], rng: random.Random) -> Item:
    """Draws one item; uses only `random()`, whose stream no Python release has changed."""
    return items[int(rng.random() * len(items))]


def _pick_intent(rng: random.Random) -> Intent:
    """Draws an intent in proportion to the shares."""
    point = rng.random() * sum(intent.share for intent in INTENTS)
    for intent in INTENTS:
        point -= intent.share
        if point < 0:
            return intent
    return INTENTS[-1]


def _expand(template: str, rng: random.Random) -> str:
    """Fills in the shared phrases and makes every choice, the innermost first."""
    text = _MACRO.sub(lambda match: MACROS[match[1]], template)
    while match := _CHOICE.search(text):
        text = text[: match.start()] + _pick(match[1].split("|"), rng) + text[match.end() :]
    return text


def _wrap(core: str, mark: str, rng: random.Random) -> str:
    """Puts an opener and a closer around the core that suit its mood (statement, question or command)."""
    openers = {"~": _STATEMENT_OPENERS, "?": _QUESTION_OPENERS}.get(mark, _COMMAND_OPENERS)
    closers = _PLAIN_CLOSERS if mark in "~?" else _CLOSERS
    return _pick(openers, rng) + core + _pick(closers, rng)


def _mistype(request: str, keep: set[str], rng: random.Random) -> str:
    """Sometimes misspells one word of at least five letters that carries no slot value."""
    if rng.random() >= TYPO_SHARE:
        return request
    words = request.split(" ")
    places = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha() and word not in keep]
    if not places:
        return request
    place = _pick(places, rng)
    word = words[place]
    cut = 1 + int(rng.random() * (len(word) - 3))
    swapped = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    words[place] = _pick((swapped, word[:cut] + word[cut + 1 :], word[:cut] + word[cut] + word[cut:]), rng)
    return " ".join(words)


def _finish(request: str, rng: random.Random) -> str:
    """Adds the end punctuation and, now and then, a capital letter."""
    request += _pick(("", "", "", ".", "!", "?"), rng)
    return request[0].upper() + request[1:] if rng.random() < CAPITAL_SHARE else request


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2 and the message."""
        self.exit(2, f"error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes rows to a JSON-lines file and returns the process exit code."""
    parser = _Parser(description="Write chat rows of the smart-home grammar as JSON lines.")
    parser.add_argument("--rows", type=int, default=2000, help="number of rows (default 2000)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the generator (default 7)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="split to draw from (default train)")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args(argv)
    try:
        lines = [json.dumps(row) + "\n" for row in generate(options.rows, options.seed, options.split)]
        options.out.write_text("".join(lines), encoding="utf-8", newline="\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {len(lines)} rows to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
