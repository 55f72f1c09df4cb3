"""Short texts of several kinds, written for this package: what an adapter was not trained on."""

from __future__ import annotations

_PROSE = """
The ferry left the harbor just after sunrise, and by the time the fog lifted we could see three islands to the west.
An old man beside the rail said that only one of them had fresh water.

Bread needs four things: flour, water, salt and time. Most people who are disappointed with their first loaf gave it
too little of the last one.

The committee met on Tuesday and decided, after two hours, to meet again on Friday. Nobody objected, because nobody
had read the report.

Glaciers move slowly, but they move. Over thousands of years the ice carves valleys, carries boulders across whole
countries and leaves long ridges of gravel where it finally melts.

She had kept every letter in a tin box under the bed. When the house was sold, the new owners found the box, read the
first page and decided to look for her.

A violin and a cello are built in much the same way, yet the sound of each is unmistakable. The larger body favors low
frequencies, and the longer strings need less tension.

In 1854 a doctor in London marked the deaths from cholera on a map of the city. The points lay close together around
one water pump, and when its handle was removed the outbreak ended.

The train was late again. On the platform a girl was teaching her brother to whistle, and a man in a gray coat was
pretending not to listen.

Plants take in carbon dioxide through small openings in their leaves. The same openings let water escape, so in dry
weather a plant must choose between hunger and thirst.

The company reported a profit of 12 million euros for the third quarter, up from 9 million a year earlier. Sales in
Asia fell slightly, while those in South America grew by a fifth.

It rained for the whole of the second week. We played cards, repaired the tent and learned that my uncle knew every
verse of a song about a drowned sailor.

Most bridges of the Romans were built of stone and rested on arches. Each stone pushes against its neighbors, and the
heavier the load, the more firmly the arch holds together.

The museum is open from ten to six, except on Mondays. Tickets can be bought at the entrance or online, and children
under twelve do not pay.

Nobody in the village could remember who had planted the walnut tree. It stood in the middle of the square, and every
meeting, wedding and quarrel took place in its shade.

When a star runs out of hydrogen, its core shrinks and its outer layers swell. In about five billion years this will
happen to the sun, which will then be large enough to swallow Mercury and Venus.

The mayor thanked the volunteers, cut the ribbon and walked through the new library. The first book to be borrowed was
a cookbook, and it came back a day late.
"""

_CODE = '''
def fibonacci(n):
    """Return the first n Fibonacci numbers."""
    numbers = [0, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:n]

---
import json
from pathlib import Path

def load_config(path):
    text = Path(path).read_text(encoding="utf-8")
    config = json.loads(text)
    if "name" not in config:
        raise ValueError(f"{path} has no name")
    return config

---
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

---
function debounce(callback, delay) {
  let timer = null;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => callback(...args), delay);
  };
}

---
SELECT customers.name, SUM(orders.total) AS spent
FROM customers
JOIN orders ON orders.customer_id = customers.id
WHERE orders.created_at >= '2023-01-01'
GROUP BY customers.name
ORDER BY spent DESC
LIMIT 10;

---
#include <stdio.h>

int main(void) {
    int sum = 0;
    for (int i = 1; i <= 100; i++) {
        if (i % 3 == 0 || i % 5 == 0) {
            sum += i;
        }
    }
    printf("%d\\n", sum);
    return 0;
}

---
def binary_search(values, target):
    low, high = 0, len(values) - 1
    while low <= high:
        middle = (low + high) // 2
        if values[middle] == target:
            return middle
        if values[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return -1

---
for file in *.csv; do
    lines=$(wc -l < "$file")
    if [ "$lines" -gt 1000 ]; then
        echo "$file has $lines lines"
        gzip "$file"
    fi
done

---
import pandas as pd

frame = pd.read_csv("sales.csv", parse_dates=["date"])
monthly = frame.groupby(frame["date"].dt.month)["amount"].sum()
print(monthly.sort_values(ascending=False).head(3))

---
<form action="/login" method="post">
  <label for="user">User name</label>
  <input id="user" name="user" type="text" required>
  <button type="submit">Log in</button>
</form>

---
public static boolean isPalindrome(String text) {
    int left = 0;
    int right = text.length() - 1;
    while (left < right) {
        if (text.charAt(left++) != text.charAt(right--)) {
            return false;
        }
    }
    return true;
}

---
def test_average_of_an_empty_list():
    with pytest.raises(ZeroDivisionError):
        average([])


def test_average():
    assert average([1, 2, 3]) == 2
    assert average([0.5]) == pytest.approx(0.5)
'''

PROSE = [" ".join(text.split()) for text in _PROSE.split("\n\n")]
CODE = [f"{text.strip()}\n" for text in _CODE.split("---\n")]
CHAT = [
    ("What is the capital of Australia?", "The capital of Australia is Canberra."),
    (
        "Why is the sky blue?",
        "Sunlight contains all colors. Air scatters short wavelengths more than long ones, so blue light reaches us "
        "from every direction and the sky looks blue.",
    ),
    ("Translate to French: Where is the station?", "Où est la gare ?"),
    (
        "Give me three tips for sleeping better.",
        "1. Go to bed at the same time every day.\n2. Keep the bedroom cool and dark.\n3. Avoid screens and coffee in "
        "the evening.",
    ),
    ("What is 17 times 6?", "17 times 6 is 102."),
    (
        "Write a short apology for missing a meeting.",
        "Dear Anna,\n\nI am sorry that I missed our meeting this morning. Could we meet tomorrow at the same time "
        "instead?\n\nBest regards,\nPaul",
    ),
    (
        "What is the difference between a virus and a bacterium?",
        "A bacterium is a living cell that can reproduce on its own. A virus is much smaller and can only reproduce "
        "inside the cells of a host. Antibiotics work against bacteria, but not against viruses.",
    ),
    (
        "How do I reverse a list in Python?",
        "Use `reversed(values)` to iterate over the list backwards, `values[::-1]` to get a reversed copy, or "
        "`values.reverse()` to reverse it in place.",
    ),
    ("Name a book by Jane Austen.", "One of her best-known books is Pride and Prejudice, published in 1813."),
    (
        "Summarize in one sentence: The shop closed at five because the owner was ill, and many customers left "
        "disappointed.",
        "The shop closed early because the owner was ill, which disappointed many customers.",
    ),
    (
        "I feel nervous about my exam tomorrow.",
        "That is completely normal. Go through your notes once more, get enough sleep, and remember that you have "
        "prepared for this.",
    ),
    ("Which is heavier, a kilogram of iron or a kilogram of feathers?", "They weigh the same: one kilogram each."),
]
"""Requests and answers."""
