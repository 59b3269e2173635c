"""Answers to the fourth assignment that students might give: by name, what each cell holds instead of the solution."""

from __future__ import annotations

# Every cell here is wrong in one way, and costs the points of its own exercise.
WRONG = {
    "averages and ties": {
        "average_hidden": """
def average_hidden(states):
    return states.mean(dim=1, keepdim=True).expand_as(states)""",
        "average_matched": """
def average_matched(states):
    return states.mean(dim=0).expand_as(states)""",
        "average_noise": """
def average_noise(noise):
    return noise.mean(dim=0)""",
        "vote": """
def vote(answers):
    most = max(set(answers), key=answers.count)
    return answers.index(most)""",
        "gains": """
def gains(right, single):
    return right - single[0]""",
        "paired_interval": """
def paired_interval(one, other):
    half = 1.959964 * (one.var() / len(one) + other.var() / len(other)).sqrt()
    return (one - other).mean() - half, (one - other).mean() + half""",
        "passes": """
def passes(seeds, steps, shared):
    return seeds * steps""",
        "puzzles_needed": """
def puzzles_needed(spread, half_width):
    return int((1.959964 * spread / half_width) ** 2)""",
    },
    "almost": {
        "average_hidden": """
def average_hidden(states):
    return states.mean(dim=0)""",
        "average_matched": """
def average_matched(states):
    mean = states.mean(dim=0)
    return (mean * states.norm() / mean.norm() / len(states) ** 0.5).expand_as(states)""",
        "average_noise": """
def average_noise(noise):
    mean = noise.mean(dim=0)
    return mean / mean.std()""",
        "gains": """
def gains(right, single):
    return right - single.amax(dim=0)""",
        "paired_interval": """
def paired_interval(one, other):
    difference = one - other
    half = 1.959964 * difference.std()
    return difference.mean() - half, difference.mean() + half""",
        "puzzles_needed": """
def puzzles_needed(spread, half_width):
    return 1.959964 * spread / half_width""",
    },
}

# The same mathematics in other words.
RIGHT = {
    "loops": {
        "average_hidden": """
def average_hidden(states):
    total = states[0].clone()
    for other in states[1:]:
        total += other
    return torch.stack([total / len(states)] * len(states))""",
        "vote": """
from collections import Counter
def vote(answers):
    readable = Counter(a for a in answers if a >= 0)
    if not readable:
        return 0
    return max(range(len(answers)), key=lambda i: (readable.get(answers[i], 0), -i))""",
        "passes": """
def passes(seeds, steps, shared):
    return sum(seeds if step < shared else 1 for step in range(steps))""",
        "puzzles_needed": """
def puzzles_needed(spread, half_width):
    n = 1
    while 1.959964 * spread / n ** 0.5 > half_width:
        n += 1
    return n""",
    },
    "in numpy": {
        "average_matched": """
def average_matched(states):
    states = states.numpy()
    mean = states.mean(0)
    mean = mean / np.linalg.norm(mean, axis=1, keepdims=True) * np.linalg.norm(states, axis=2).mean(0)[:, None]
    return np.stack([mean] * len(states))""",
        "average_noise": """
def average_noise(noise):
    return noise.numpy().mean(0) * np.sqrt(len(noise))""",
        "paired_interval": """
def paired_interval(one, other):
    d = one.numpy() - other.numpy()
    half = 1.959964 * np.sqrt(((d - d.mean()) ** 2).sum() / (len(d) - 1) / len(d))
    return np.array([d.mean() - half, d.mean() + half])""",
    },
    "in place": {
        "average_hidden": """
def average_hidden(states):
    states[:] = states.mean(dim=0)
    return states""",
        "gains": """
def gains(right, single):
    right -= single.mean(dim=0)
    return right""",
        "average_noise": """
def average_noise(noise):
    return noise.sum(dim=0).div_(len(noise) ** 0.5)""",
    },
}
