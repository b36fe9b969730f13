"""Asks a running server for an answer with a signal beside each token, plain and guided.

otter serve OUT                               (in another terminal)
python examples/openai_client.py http://127.0.0.1:8000 reward 2.0 "What do you think of Mondays?"
"""

import sys

from openai import OpenAI


def main(address: str, signal: str, strength: str, text: str) -> None:
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    model = client.models.list().data[0].id
    for guide in ({}, {signal: float(strength)}):
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": text}],
            max_tokens=40,
            temperature=0,
            stream=True,
            extra_body={"signals": [signal], "guide": guide},
        )
        print("guided:" if guide else "plain:")
        for chunk in stream:
            choice = chunk.choices[0]
            # What OpenAI's schema does not know is in `model_extra`.
            for name, series in (choice.model_extra or {}).get("signals", {}).items():
                print(f"  {choice.delta.content or '':<16} {name} {series['last']:+.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:5])
