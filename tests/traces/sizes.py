"""Experts of two sizes, as in Q4_K_M files, and policies that move bytes between layers of different sizes."""

from __future__ import annotations

from typing import Any

from cached import Unsteady, made

from headrace.engine.planning.replays import Replays
from headrace.engine.policies.protocol import Asked, Key, Moves, Shape

MIXED = {"expert_format": "q4_k_m", "dense_format": "q4_k_m"}  # of the demo model: 32,768 and 38,912 bytes


class Greedy:
    """The last chosen experts of the last layers are resident, to the last byte: of whichever sizes they are."""

    name = "greedy"

    def start(self, shape: Shape, budget: int) -> list[Key]:
        self.shape, self.used = shape, dict[Key, int]()
        return []

    def layer(self, asked: Asked) -> Moves:
        time, size = asked.step * self.shape.layers + asked.layer, self.shape.expert_bytes[asked.layer]
        self.used.update(((asked.layer, expert), time) for expert in asked.chosen)
        there = sorted(((n, e) for n, of in enumerate(asked.residents) for e in of), key=lambda key: self.used[key])
        room, evict, fetch = asked.room, [], []
        for expert in asked.missing:
            while room < size and there and there[0][0] != asked.layer:
                evict.append(there.pop(0))
                room += self.shape.expert_bytes[evict[-1][0]]
            if room < size:
                break
            fetch.append(expert)
            room -= size
        return Moves(fetch=tuple(fetch), evict=tuple(evict))

    def resized(self, shape: Shape, budget: int, residents: Any) -> Moves:
        there = sorted(((n, e) for n, of in enumerate(residents) for e in of), key=lambda key: self.used[key])
        taken, evict = sum(shape.expert_bytes[n] for n, _ in there), []
        while taken > budget:
            evict.append(there.pop(0))
            taken -= shape.expert_bytes[evict[-1][0]]
        return Moves(evict=tuple(evict))


class Fair(Unsteady):
    """Without sense, and with the bytes of each expert: within its budget whatever the sizes are."""

    def layer(self, asked: Asked) -> Moves:
        sizes, flip, layer = self.shape.expert_bytes, self.random, asked.layer
        there = [(n, e) for n, of in enumerate(asked.residents) for e in sorted(of)]
        evict = flip.sample(there, min(len(there), flip.randrange(5)))
        late = {key for key in evict if key[0] == layer and key[1] in asked.chosen}
        room = asked.room + sum(sizes[n] for n, _ in evict if (n, _) not in late)
        missing = flip.sample(asked.missing, len(asked.missing))
        fetch = missing[: min(flip.randrange(5), room // sizes[layer])]
        room += sum(sizes[n] for n, _ in late) - len(fetch) * sizes[layer]
        ahead = []
        for _ in range(flip.randrange(4)):
            n = flip.randrange(self.shape.layers)
            absent = [e for e in range(self.shape.experts[n]) if e not in asked.residents[n] and (n, e) not in ahead]
            if absent and n != layer and sizes[n] <= room:
                ahead.append((n, flip.choice(absent)))
                room -= sizes[n]
        return Moves(fetch=tuple(fetch), prefetch=tuple(ahead), evict=tuple(evict))

    def resized(self, shape: Shape, budget: int, residents: Any) -> Moves:
        there = [(n, e) for n, of in enumerate(residents) for e in sorted(of)]
        self.random.shuffle(there)
        taken, evict = sum(shape.expert_bytes[n] for n, _ in there), []
        while taken > budget:
            evict.append(there.pop())
            taken -= shape.expert_bytes[evict[-1][0]]
        return Moves(evict=tuple(evict))


def policies(name: str, of: Replays) -> list[Any]:
    """Two alike: of the box, or one of these."""
    own = {"greedy": Greedy, "unsteady": lambda: Fair(4)}
    return [own[name]() if name in own else made(name, of) for _ in range(2)]
