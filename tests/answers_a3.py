"""Answers to the third assignment that students might give: by name, what each cell holds instead of the solution."""

from __future__ import annotations

# Every cell here is wrong in one way, and costs the points of its own exercise.
WRONG = {
    "leaks and axes": {
        "token_energy": """
def token_energy(hidden):
    return hidden.norm(dim=-1)""",
        "folds_of": """
def folds_of(groups, folds):
    return torch.arange(len(groups)) % folds""",
        "ridge_scores": """
def ridge_scores(train, labels, test, penalty):
    weights = torch.linalg.solve(train.T @ train + penalty * torch.eye(train.shape[1]).double(), train.T @ labels)
    return test @ weights""",
        "out_of_fold": """
def out_of_fold(features, labels, fold, penalty):
    return ridge_scores(features, labels, features, penalty)""",
        "beyond_baseline": """
def beyond_baseline(read, baselines):
    return read - baselines.amax(dim=0)""",
        "token_mask": """
def token_mask(frames, rows, columns, cells, chosen):
    mask = torch.zeros(frames, rows, columns, dtype=torch.bool)
    for row, column in cells:
        mask[:, row, column] = True
    return mask.flatten()""",
        "swap_hidden": """
def swap_hidden(own, donor, mask):
    own[:, mask] = donor[:, mask]
    return own""",
        "three_ways": """
def three_ways(after, a, b):
    stays, becomes = (after == a).double().mean(), (after == b).double().mean()
    return stays, becomes, 1 - stays - becomes""",
    },
    "almost": {
        "token_energy": """
def token_energy(hidden):
    norms = hidden.norm(dim=-1)
    return norms / norms.mean()""",
        "folds_of": """
def folds_of(groups, folds):
    return groups % folds""",
        "ridge_scores": """
def ridge_scores(train, labels, test, penalty):
    middle, level = train.mean(dim=0), labels.mean()
    x, y = train - middle, labels - level
    weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return (test - test.mean(dim=0)) @ weights + level""",
        "token_mask": """
def token_mask(frames, rows, columns, cells, chosen):
    mask = torch.zeros(frames, columns, rows, dtype=torch.bool)
    for frame in chosen:
        for row, column in cells:
            mask[frame, column, row] = True
    return mask.flatten()""",
        "three_ways": """
def three_ways(after, a, b):
    telling = a != b
    stays, becomes = ((after == other)[telling].double().mean() for other in (a, b))
    return stays, becomes, 1 - stays - becomes""",
    },
}

# The same mathematics in other words.
RIGHT = {
    "loops": {
        "token_energy": """
def token_energy(hidden):
    rows = []
    for video in hidden:
        norms = torch.sqrt((video * video).sum(-1))
        rows.append(norms / norms.mean())
    return torch.stack(rows)""",
        "folds_of": """
def folds_of(groups, folds):
    kinds = sorted(set(groups.tolist()))
    return [kinds.index(int(g)) * folds // len(kinds) for g in groups]""",
        "token_mask": """
def token_mask(frames, rows, columns, cells, chosen):
    cells = {tuple(cell) for cell in cells}
    return [f in chosen and (r, c) in cells for f in range(frames) for r in range(rows) for c in range(columns)]""",
        "three_ways": """
def three_ways(after, a, b):
    counts = {"a": 0, "b": 0, "n": 0}
    for x, y, z in zip(after.tolist(), a.tolist(), b.tolist()):
        if y != z and y != -1 and z != -1:
            counts["a" if x == y else "b" if x == z else "n"] += 1
    return [count / sum(counts.values()) for count in counts.values()]""",
    },
    "other algebra": {
        "ridge_scores": """
def ridge_scores(train, labels, test, penalty):
    middle, level = train.mean(0), labels.mean()
    x = train - middle
    gram = x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype)
    return (test - middle) @ x.T @ torch.linalg.inv(gram) @ (labels - level) + level""",
        "swap_hidden": """
def swap_hidden(own, donor, mask):
    result = own.clone()
    result[:, mask] = donor[:, mask]
    return result""",
        "beyond_baseline": """
def beyond_baseline(read, baselines):
    best = max(baselines, key=lambda row: float(row.sum()))
    return read - best""",
    },
    "in numpy": {
        "ridge_scores": """
def ridge_scores(train, labels, test, penalty):
    train, labels, test = (np.asarray(part) for part in (train, labels, test))
    middle, level = train.mean(0), labels.mean()
    x = np.vstack([train - middle, np.sqrt(penalty) * np.eye(train.shape[1])])
    y = np.concatenate([labels - level, np.zeros(train.shape[1])])
    return (test - middle) @ np.linalg.lstsq(x, y, rcond=None)[0] + level""",
        "token_energy": """
def token_energy(hidden):
    norms = np.linalg.norm(hidden.numpy(), axis=2)
    return norms / norms.mean(axis=1, keepdims=True)""",
        "swap_hidden": """
def swap_hidden(own, donor, mask):
    return np.where(mask.numpy()[None, :, None], donor.numpy(), own.numpy())""",
    },
}
