"""Write smart_home/train.jsonl and smart_home/test.jsonl: requests in plain English, and the command for each.

The test asks for pairs of room and device that no training line names, so remembering the training lines answers none of it.
"""

import json
import random
from pathlib import Path

ROOMS = ("kitchen", "bedroom", "hall", "office", "cellar", "attic", "bathroom", "garage")
DEVICES = ("lamp", "heater", "fan", "radio", "blind", "speaker", "screen", "humidifier")
REQUESTS = {
    "on": (
        "Please switch on the {device} in the {room}.",
        "It would be nice to have the {room} {device} running.",
        "Could you start the {device} in the {room}?",
        "I need the {room} {device} now.",
    ),
    "off": (
        "Nobody needs the {device} in the {room} any more.",
        "Could the {room} {device} be stopped?",
        "Please turn the {device} in the {room} off.",
        "Enough of the {room} {device} for today.",
    ),
    "{level}": (
        "Set the {device} in the {room} to {level} percent.",
        "I would like the {room} {device} at {level} percent.",
        "Could the {device} in the {room} go to {level} percent?",
        "Bring the {room} {device} to {level} percent.",
    ),
}


def lines(held_out: bool, count: int) -> list[dict[str, str]]:
    """Draw requests about the pairs that are held out, a quarter of all, or about the others."""
    draw, found = random.Random(count), []
    for i, room in enumerate(ROOMS):
        for j, device in enumerate(DEVICES):
            for state, requests in REQUESTS.items():
                for request in requests:
                    words = {"room": room, "device": device, "level": 5 * draw.randrange(1, 20)}
                    if ((i + j) % 4 == 0) == held_out:
                        command = f"{room}.{device}={state}"
                        found.append({"prompt": request.format(**words), "completion": command.format(**words)})
    return draw.sample(found, count)


if __name__ == "__main__":
    folder = Path(__file__).with_suffix("")
    folder.mkdir(exist_ok=True)
    for split, held_out, count in (("train", False, 240), ("test", True, 100)):
        text = "".join(json.dumps(line) + "\n" for line in lines(held_out, count))
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
