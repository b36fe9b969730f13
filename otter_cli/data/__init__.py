"""From files to batches.

Without torch: `tables` reads rows of files and hub datasets, `columns` recognises usual column
names, `chat` and `chat_template` handle dialogues, `pairs`, `texts` and `prompts` give typed rows,
`splits` chooses rows, `encoding` makes token ids, `batches` orders the rows, `summary` describes a
file. With torch: `datasets` holds encoded rows and pads them."""
