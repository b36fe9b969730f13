"""Beginnings of everyday sentences, written for the demo: the model continues them."""

SUBJECTS = (
    "the new restaurant on Main Street",
    "my trip to the coast",
    "the film we saw last night",
    "my first week at the new job",
    "the concert in the park",
    "my neighbour's dog",
    "the phone I bought last month",
    "the train ride home",
    "our hotel room",
    "the book you lent me",
    "the football match",
    "my visit to the dentist",
    "the weather this week",
    "the meeting this morning",
    "our new flat",
    "the birthday party",
    "the museum exhibition",
    "my sister's wedding",
    "the customer service",
    "the online course",
    "the garden this year",
    "the school play",
    "the repair of my car",
    "the long flight",
    "the city market",
    "my old laptop",
    "the new teacher",
    "the hiking trip",
    "the family dinner",
    "the software update",
)
# The test prompts speak of subjects that no training prompt names.
TEST_SUBJECTS = (
    "the coffee at the station",
    "my running shoes",
    "the hospital staff",
    "the winter holidays",
    "the delivery",
    "the local library",
    "the video game",
    "the job interview",
)
OPENINGS = (
    "When I think about {}, I",
    "Honestly, {} was",
    "I have to tell you about {}. It",
    "After a while, {} became",
)


def training_prompts() -> list[str]:
    return _filled(SUBJECTS)


def held_out_prompts() -> list[str]:
    return _filled(TEST_SUBJECTS)


def _filled(subjects: tuple[str, ...]) -> list[str]:
    return [opening.format(subject) for opening in OPENINGS for subject in subjects]
