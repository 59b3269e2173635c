"""Mistakes that a student is likely to make: the assignment, the code, and words of the message that is to come."""

RIDGE = """
def ridge_scores(train, labels, test, penalty):
    middle, level = train.mean(0), labels.mean()
    x, y = train - middle, labels - level
    w = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]).double(), x.T @ y)
"""

CANDIDATES = """
def candidates(p, right, down, start, goal):
    size, start, goal = len(p), tuple(start), tuple(goal)
    inside = {(r, c) for r in range(size) for c in range(size) if p[r, c] >= 0.25} | {start, goal}
    def neighbours(cell):
        r, c = cell
        ways = [((r, c + 1), c + 1 < size and right[r, c]), ((r, c - 1), c > 0 and right[r, c - 1])]
        ways += [((r + 1, c), r + 1 < size and down[r, c]), ((r - 1, c), r > 0 and down[r - 1, c])]
        return [cell for cell, open in ways if open and cell in inside]
    reached, waiting = {start}, [start]
    while waiting:
        fresh = set(neighbours(waiting.pop())) - reached
        reached |= fresh
        waiting += fresh
    return sum(len(neighbours(cell)) == 1 for cell in reached if cell != start)
"""
THROUGH_WALLS = CANDIDATES.replace("if open and cell", "if cell")

A2 = [
    (THROUGH_WALLS, "a wall lies between"),
    (CANDIDATES.replace(" if cell != start", ""), "where routes begin"),
    (CANDIDATES.replace("in reached if", "in inside if"), "no way leads to"),
    (CANDIDATES.replace("| {start, goal}", "| {start}"), "the goal belongs"),
    (
        """
def noise_at_step(latents, noise, step, chosen):
    return noise""",
        "chosen step only",
    ),
    (
        """
def noise_at_frame(latents, noise, chosen):
    latents[:, :, chosen] = noise[:, :, chosen]
    return latents""",
        "latents must stay as it was given",
    ),
    (
        """
def noise_at_step(latents, noise, step, chosen):
    if step == chosen:
        latents[:] = noise
    return latents""",
        "latents must stay as it was given",
    ),
    (
        """
def path_probability(colours):
    rows = torch.tensor(colours) if not isinstance(colours, torch.Tensor) else colours
    return [[float(cell[2]) / 255 for cell in row] for row in rows]""",
        "expected one tensor, got 4: is it a list of its parts?",
    ),
    (
        """
def path_entropy(p, moves):
    return torch.special.entr(p[~p.isnan()]).sum() / np.log(2) / moves""",
        "both have their share",
    ),
    (
        """
def cka(a, b):
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    one, other = a @ a.T, b @ b.T
    return (one * other).sum() / ((one * one).sum() * (other * other).sum()).sqrt()""",
        "the other axis",
    ),
    (
        """
def cka(a, b):
    return 0.5""",
        "the number is not right: it is off by",
    ),
    (
        """
def commitment(answer, restarts, seeds):
    stay, chance = ((others == answer).double().mean() for others in (restarts, seeds))
    return (stay - chance) / (1 - chance)""",
        "not even with another -1",
    ),
    (
        """
def wilson(successes, n):
    z, rate = 1.959964, successes / n
    middle = rate + z**2 / (2 * n)
    half = z * (rate * (1 - rate) / n + z**2 / (4 * n**2)) ** 0.5
    return (middle + half) / (1 + z**2 / n), (middle - half) / (1 + z**2 / n)""",
        "the low end comes first",
    ),
]

A3 = [
    (
        """
def token_energy(hidden):
    energy = hidden.square().sum(-1)
    return energy / energy.mean(-1, keepdim=True)""",
        "not its square",
    ),
    (RIDGE + "    return (test - test.mean(0)) @ w + level", "not by their own"),
    (RIDGE + "    return (test - middle) @ w", "has to come back"),
    (
        """
def out_of_fold(features, labels, fold, penalty):
    return torch.cat(
        [
            ridge_scores(features[fold != f], labels[fold != f], features[fold == f], penalty)
            for f in fold.unique()
        ]
    )""",
        "in the order of the rows",
    ),
    (
        """
def swap_hidden(own, donor, mask):
    own[:, mask] = donor[:, mask]
    return own""",
        "own must stay as it was given",
    ),
    (
        """
def swap_hidden(own, donor, mask):
    return torch.where(mask[:, None], own, donor)""",
        "the wrong way round",
    ),
    (
        """
def token_mask(frames, rows, columns, cells, chosen):
    mask = torch.zeros(frames, rows, columns)
    for row, column in cells:
        mask[chosen, row, column] = 1
    return mask.flatten()""",
        "expected True and False, got torch.float32",
    ),
    (
        """
def out_of_fold(features, labels, fold, penalty):
    scores = torch.zeros(len(labels)).double()
    for f in range(5):
        scores[fold == f] = ridge_scores(features[fold != f], labels[fold != f], features[fold == f], penalty)
    return scores""",
        "the values are not",
    ),
    (
        """
def beyond_baseline(read, baselines):
    return read - baselines.mean(1).max()""",
        "puzzle by puzzle",
    ),
    (
        """
def three_ways(after, a, b):
    counts = (a >= 0) & (b >= 0)
    stays, becomes = ((after == other)[counts].double().mean() for other in (a, b))
    return stays, becomes, 1 - stays - becomes""",
        "pairs with equal answers",
    ),
    (
        """
def three_ways(after, a, b):
    counts = (a >= 0) & (b >= 0) & (a != b) & (after >= 0)
    stays, becomes = ((after == other)[counts].double().mean() for other in (a, b))
    return stays, becomes, 1 - stays - becomes""",
        "is neither, and counts",
    ),
]

MISTAKES = [("a2_frames_or_steps", *mistake) for mistake in A2] + [("a3_layers", *mistake) for mistake in A3]
