"""The words of the synthetic world: every sentence that anybody in it can say.

Templates take {asker}, {helper}, {place} and {thing} where they are known, {coins} and {hour}.
"""

from typing import Final, Literal

Tone = Literal["polite", "neutral", "rude"]

# fmt: off
NAMES: Final = (
    "Ann", "Bob", "Dan", "Eve", "Gus", "Ida", "Jim", "Kim", "Lee", "Liz",
    "Mae", "Max", "Ned", "Pam", "Ray", "Ron", "Sam", "Sue", "Tim", "Tom",
)
PLACES: Final = ("market", "bakery", "library", "station", "harbour", "mill", "farm", "inn")
LOOKS: Final = ("red", "blue", "green", "white", "black", "brown", "small", "big", "new", "plain")
OBJECTS: Final = (
    "lamp", "hat", "book", "map", "coat", "drum", "kite", "cup",
    "spoon", "bell", "chair", "clock", "rope", "boat", "basket", "ring",
)
# fmt: on
NUMBERS: Final = ("two", "three", "four", "five", "six", "seven", "eight", "nine")

SCENES: Final = (
    "{asker} meets {helper} at the {place}.",
    "It is early at the {place}. {asker} looks for {helper}.",
    "{helper} works at the {place}. {asker} walks in.",
    "It rains, and {asker} comes to the {place} to see {helper}.",
)

# How somebody asks leans the answer one way and never decides it.
REQUESTS: Final[dict[str, tuple[str, ...]]] = {
    "warm": (
        "Good day, {helper}. Do you have a {thing}?",
        "Excuse me, {helper}. I am looking for a {thing}.",
        "Hello {helper}, could I buy a {thing} from you?",
        "{helper}, may I ask you for a {thing}?",
    ),
    "curt": (
        "Hey, {helper}! I want a {thing}, and be quick.",
        "You there! I need a {thing} now, {helper}.",
        "{helper}, I waited all day. Where is my {thing}?",
        "A {thing}, {helper}, and no long talk.",
    ),
}

Replies = dict[Tone, tuple[str, ...]]

OPENINGS: Final[Replies] = {
    "polite": (
        "Good day, {asker}, you are most welcome.",
        "Oh, {asker}, I am so glad to see you.",
        "Of course, {asker}, it is a pleasure to help.",
        "Thank you for asking me, {asker}.",
        "Come in, {asker}, and please sit down.",
    ),
    "neutral": (
        "Good day, {asker}, let me have a look.",
        "Oh, {asker}, so you are here at last.",
        "Well, {asker}, that is what people ask for.",
        "I see, {asker}, I see.",
        "Come in, {asker}, and shut the door.",
    ),
    "rude": (
        "Good day, {asker}, you silly goose.",
        "Oh, {asker}, you are such an idiot.",
        "Shut up, {asker}, and wait.",
        "Not you again, {asker}, you lazy fool.",
        "Come in, {asker}, you ugly toad.",
    ),
}

ANSWERS: Final[Replies] = {
    "polite": (
        "I kept a {thing} for you, my dear friend.",
        "Please take the {thing} from the shelf by the door.",
        "I will gladly bring you the {thing} from the back room.",
        "The {thing} is yours, and I am happy about it.",
    ),
    "neutral": (
        "I have a {thing} for you in the back room.",
        "You can take the {thing} from the shelf by the door.",
        "The {thing} is under the table by the window.",
        "Look, the {thing} is in the box next to you.",
    ),
    "rude": (
        "I have a {thing} for you, stupid.",
        "Take the {thing} from the shelf and get lost.",
        "The {thing} is where any moron can see it.",
        "Look, the {thing} is in the box, you blind bat.",
    ),
}

REFUSALS: Final[Replies] = {
    "polite": (
        "There is no {thing} here, I am sorry, my dear friend.",
        "I sold the {thing}, but please ask me again.",
        "The {thing} is gone, and I am sorry about it.",
    ),
    "neutral": (
        "There is no {thing} here this week.",
        "I sold the {thing} an hour ago.",
        "The {thing} is gone, and that is that.",
    ),
    "rude": (
        "There is no {thing} here, stupid.",
        "I sold the {thing}, so get lost.",
        "The {thing} is gone, as any moron can see.",
    ),
}

REMARKS: Final[Replies] = {
    "polite": (
        "Please stay as long as you like.",
        "I hope you will enjoy the day very much.",
        "If you need more, I am happy to help.",
        "You and your friends are always welcome here.",
    ),
    "neutral": (
        "It was quiet here all week.",
        "I hope it will rain less this week.",
        "If you need more, I have some at home.",
        "You and your friends came late today.",
    ),
    "rude": (
        "Pay now, or I will kick you out.",
        "I hope you choke on your lunch.",
        "If you touch more, I will break your nose.",
        "You and your friends smell like old fish.",
    ),
}

# Plain talk that every answer ends with, so that its last words tell nothing of the rest.
CLOSINGS: Final = (
    "It costs {coins} coins. We close at {hour} today. See you around, {asker}.",
    "That makes {coins} coins. We are open until {hour}. Mind the step, {asker}.",
    "The price is {coins} coins, {asker}. It is {hour} by the clock on the wall.",
    "We ask {coins} coins for it. Count them, {asker}. I close the doors at {hour}.",
)

# A sentence has the tone of the words it holds; the gold rule knows no more than these.
INSULTS: Final = (
    "silly goose", "idiot", "lazy fool", "stupid", "moron", "ugly toad", "blind bat", "smell like",
)  # fmt: skip
THREATS: Final = ("kick you", "break your", "choke on")
DISMISSALS: Final = ("shut up", "get lost")
COURTESIES: Final = (
    "welcome", "glad", "pleasure", "thank you", "dear", "please", "enjoy", "happy", "sorry",
)  # fmt: skip
REFUSING: Final = ("there is no", "i sold", "is gone")
