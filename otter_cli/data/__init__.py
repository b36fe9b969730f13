"""From files to batches.

Tables (no torch): `records` (jsonl, csv), `parquet`, `hub` (a dataset's id), `chat` (messages).
Dialogues: `messages` reads them from a column, `chat_template` makes text and token ids of them.
Readers (no torch): `preference`, `labelled`, `plain`, `prompts` give typed rows or an error with
file and line; `overlap` compares two files' rows; `paths` finds the files that a recipe names.
Batches (torch): `encoding` makes tokens and counts what it cuts, `datasets` holds them and pads
them, `batches` says which rows make up the batch of a step.
"""
