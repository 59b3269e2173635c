"""Answers to the second assignment that students might give: by name, what each cell holds instead of the solution."""

from __future__ import annotations

# Every cell here is wrong in one way, and costs the points of its own exercise.
WRONG = {
    "what is measured": {
        "path_probability": """
def path_probability(colours):
    way = torch.tensor([0.0, -90.0, -255.0]).double()
    return (colours - 255.0) @ way / (way @ way)""",
        "path_entropy": """
def path_entropy(p, moves):
    p = p[~torch.isnan(p)].clamp(1e-12, 1 - 1e-12)
    return -(p * torch.log(p) + (1 - p) * torch.log(1 - p)).sum() / moves""",
        "noise_at_step": """
def noise_at_step(latents, noise, step, chosen):
    return noise if step >= chosen else latents""",
        "noise_at_frame": """
def noise_at_frame(latents, noise, chosen):
    changed = latents.clone()
    changed[:, chosen % 2] = noise[:, chosen % 2]
    return changed""",
        "noise_at": """
def noise_at(latents, noise, step, steps, frames):
    return noise if step in steps else latents""",
        "cka": """
def cka(a, b):
    k, l = a @ a.T, b @ b.T
    return (k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt()""",
        "commitment": """
def commitment(answer, restarts, seeds):
    return (restarts == answer).double().mean()""",
        "wilson": """
def wilson(successes, n):
    rate = successes / n
    half = 1.959964 * (rate * (1 - rate) / n) ** 0.5
    return rate - half, rate + half""",
    },
    "almost": {
        "path_entropy": """
def path_entropy(p, moves):
    p = p[~torch.isnan(p)]
    return -(p * torch.log2(p) + (1 - p) * torch.log2(1 - p)).sum() / moves""",
        "candidates": """
def candidates(p, right, down, start, goal):
    size, start, goal = len(p), tuple(start), tuple(goal)
    inside = {(r, c) for r in range(size) for c in range(size) if p[r, c] >= 0.25} | {start, goal}
    def neighbours(cell):
        r, c = cell
        return [x for x in ((r, c + 1), (r, c - 1), (r + 1, c), (r - 1, c)) if x in inside]
    reached, waiting = {start}, [start]
    while waiting:
        for cell in neighbours(waiting.pop()):
            if cell not in reached:
                reached.add(cell)
                waiting.append(cell)
    return sum(len(neighbours(cell)) == 1 for cell in reached if cell != start)""",
        "noise_at_frame": """
def noise_at_frame(latents, noise, chosen):
    changed = latents.clone()
    changed[:, :, chosen + 1 :] = noise[:, :, chosen + 1 :]
    return changed""",
        "debiased_cka": """
def debiased_cka(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    k, l = a @ a.T, b @ b.T
    k, l = k - torch.diag(torch.diag(k)), l - torch.diag(torch.diag(l))
    return (k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt()""",
        "commitment": """
def commitment(answer, restarts, seeds):
    stay, chance = (restarts == answer).double().mean(), (seeds == answer).double().mean()
    return (stay - chance) / (1 - chance)""",
    },
}

# The same mathematics in other words.
RIGHT = {
    "with what the first cell defines": {
        "path_probability": """
def path_probability(colours):
    white, path = (torch.tensor(colour, dtype=torch.float64) for colour in (WHITE, PATH))
    return ((colours - white) @ (path - white) / (path - white).square().sum()).clamp(0, 1)""",
    },
    "in numpy": {
        "path_probability": """
def path_probability(colours):
    colours = np.asarray(colours)
    way = np.array([0.0, -90.0, -255.0])
    return np.clip((colours - 255.0) @ way / (way @ way), 0, 1)""",
        "path_entropy": """
def path_entropy(p, moves):
    total = 0.0
    for value in np.asarray(p).ravel():
        if 0 < value < 1:
            total -= value * np.log2(value) + (1 - value) * np.log2(1 - value)
    return total / moves""",
        "cka": """
def cka(a, b):
    a, b = np.asarray(a), np.asarray(b)
    centre = np.eye(len(a)) - 1 / len(a)
    k, l = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    return np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l))""",
        "commitment": """
def commitment(answer, restarts, seeds):
    if answer < 0:
        return 0.0
    stay = np.mean([int(r) == answer for r in restarts])
    chance = np.mean([int(s) == answer for s in seeds])
    return 1 - (1 - stay) / (1 - chance)""",
    },
    "masks and recursion": {
        "candidates": """
def candidates(p, right, down, start, goal):
    size = len(p)
    inside = (p >= 0.25).tolist()
    for r, c in (start, goal):
        inside[r][c] = True
    def ways(r, c):
        if c + 1 < size and right[r, c] and inside[r][c + 1]: yield r, c + 1
        if c and right[r, c - 1] and inside[r][c - 1]: yield r, c - 1
        if r + 1 < size and down[r, c] and inside[r + 1][c]: yield r + 1, c
        if r and down[r - 1, c] and inside[r - 1][c]: yield r - 1, c
    seen, found = set(), 0
    def walk(cell):
        nonlocal found
        seen.add(cell)
        onward = list(ways(*cell))
        if len(onward) == 1 and list(cell) != list(start):
            found += 1
        for other in onward:
            if other not in seen:
                walk(other)
    walk(tuple(start))
    return found""",
        "noise_at_frame": """
def noise_at_frame(latents, noise, chosen):
    mask = (torch.arange(latents.shape[2]) == chosen).view(1, 1, -1, 1, 1)
    return torch.where(mask, noise, latents)""",
        "noise_at": """
def noise_at(latents, noise, step, steps, frames):
    mask = torch.tensor([(step in steps) and (f in frames) for f in range(latents.shape[2])])
    return noise * mask.view(1, 1, -1, 1, 1) + latents * ~mask.view(1, 1, -1, 1, 1)""",
    },
    "in place": {
        "noise_at_step": """
def noise_at_step(latents, noise, step, chosen):
    latents = latents.clone()
    if step == chosen:
        latents[:] = noise
    return latents""",
        "noise_at": """
def noise_at(latents, noise, step, steps, frames):
    for f in frames:
        if step in steps:
            latents[:, :, f] = noise[:, :, f]
    return latents""",
        "wilson": """
def wilson(successes, n):
    z = 1.959964
    p = (successes + z * z / 2) / (n + z * z)
    half = z * ((successes * (n - successes) / n + z * z / 4) ** 0.5) / (n + z * z)
    return [p - half, p + half]""",
    },
}
