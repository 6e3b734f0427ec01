"""Merging: the laws of a semilattice, and that no order of deltas, cuts and collections loses or resurrects a key."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from meshmoe.core.ids import NodeId
from meshmoe.gossip.messages import Entry, NodeDelta, delta_bytes
from meshmoe.gossip.replica import Replica, newer
from meshmoe.gossip.sync import missing_after

OWNER = NodeId("owner")


def replica(generation=1, *, keys_max=100, bytes_max=10_000):
    return Replica(OWNER, generation, keys_max=keys_max, bytes_max=bytes_max)


def delta(*entries, after=0, upto=None, generation=1, floor=0):
    made = [Entry(key, version, value) for key, version, value in entries]
    return NodeDelta(OWNER, generation, floor, after, upto or max((e.version for e in made), default=after), made)


def state(of):
    return (of.generation, of.entries, of.upto, of.floor)


# -- laws ------------------------------------------------------------


@st.composite
def histories(draw):
    """Deltas cut from one owner's two lives, in any shape: overlapping, with gaps, repeated."""
    deltas = []
    for generation in (1, 2):
        owner = replica(generation)
        for _ in range(draw(st.integers(1, 8))):
            owner.write(draw(st.sampled_from("abcd")), draw(st.none() | st.binary(max_size=2)))
            starts = draw(st.lists(st.integers(0, owner.upto), max_size=2))
            deltas += [owner.delta(start, 10_000)[0] for start in starts]
    return deltas


def merged(deltas):
    into = replica(0)
    for each in deltas:
        into.absorb(each)
    return into


@given(histories(), st.randoms(use_true_random=False))
def test_entries_do_not_depend_on_order_or_repetition(deltas, rng):
    """Commutative, associative and idempotent: any arrangement with repetitions gives the same entries (S5)."""
    once = merged(deltas)
    again = [*deltas, *deltas]
    rng.shuffle(again)
    other = merged(again)
    assert (once.generation, once.entries) == (other.generation, other.entries)


entries = st.builds(Entry, st.just("k"), st.integers(1, 4), st.none() | st.binary(max_size=2))


@given(entries, entries, entries)
def test_which_entry_holds_is_a_total_order(a, b, c):
    def join(x, y):
        return y if newer(x, y) else x

    assert join(a, b) == join(b, a)
    assert join(a, join(b, c)) == join(join(a, b), c)
    assert join(a, a) == a


# -- rules -----------------------------------------------------------


def test_a_gap_keeps_entries_but_not_the_claim_to_know_all():
    ours = replica()
    assert ours.absorb(delta(("a", 1, b"1"))) == ({"a"}, False)
    assert ours.absorb(delta(("c", 3, b"3"), after=2)) == ({"c"}, True)
    assert ours.upto == 1
    assert set(ours.entries) == {"a", "c"}
    assert [entry.key for entry in ours.after(0)] == ["a"], "what may be incomplete is not passed on as complete"
    assert ours.absorb(delta(("b", 2, b"2"), ("c", 3, b"3"), after=1)) == ({"b"}, False)
    assert ours.upto == 3


def test_a_later_generation_replaces_everything():
    ours = replica()
    ours.absorb(delta(("a", 7, b"old"), ("b", 8, b"old")))
    changed, gap = ours.absorb(delta(("a", 1, b"new"), generation=2))
    assert (changed, gap) == ({"a", "b"}, False)
    assert dict(ours.values()) == {"a": b"new"}
    assert ours.absorb(delta(("a", 9, b"older"), generation=1)) == (set(), False)


def test_a_collected_tombstone_is_not_outlived():
    """Whoever missed both the removal and its tombstone starts anew (rule F1)."""
    owner, away = replica(), replica()
    owner.write("a", b"1")
    owner.write("b", b"2")
    away.absorb(owner.delta(0, 10_000)[0])
    owner.write("a", None)
    owner.raise_floor(3)
    assert set(owner.entries) == {"b"}
    ahead, _, _ = owner.delta(2, 10_000)
    assert away.absorb(ahead) == (set(), True)
    assert owner.start_for(away.upto, away.floor) == 0
    changed, gap = away.absorb(owner.delta(0, 10_000)[0])
    assert (changed, gap) == ({"a", "b"}, False)
    assert state(away) == state(owner)


def test_half_way_through_a_restart_nothing_comes_from_who_is_behind():
    """Rule F2: the lagging peer still has what was removed."""
    owner, lagging, ours = replica(), replica(), replica()
    owner.write("a", b"1")
    owner.write("b", b"2")
    lagging.absorb(owner.delta(0, 10_000)[0])
    owner.write("c", b"3")
    owner.write("b", None)
    owner.raise_floor(4)
    first, _, cut = owner.delta(0, 0)  # one entry: a
    assert cut
    ours.absorb(first)
    assert not ours.complete
    assert ours.absorb(lagging.delta(1, 10_000)[0]) == (set(), False)
    ours.absorb(owner.delta(ours.upto, 10_000)[0])
    assert dict(ours.values()) == {"a": b"1", "c": b"3"}


def test_old_deltas_do_not_resurrect():
    owner, ours = replica(), replica()
    owner.write("a", b"1")
    old = owner.delta(0, 10_000)[0]
    owner.write("a", None)
    owner.raise_floor(2)
    ours.absorb(owner.delta(0, 10_000)[0])
    assert ours.absorb(old) == (set(), False)
    assert not ours.entries


def test_deltas_are_cut_by_bytes_and_go_on():
    owner, ours = replica(), replica()
    for index in range(40):
        owner.write(f"k/{index}", bytes(50))
    messages = 0
    while ours.upto < owner.upto:
        part, size, cut = owner.delta(ours.upto, 500)
        assert delta_bytes(part) == size <= 500
        assert cut == (part.upto < owner.upto)
        assert not ours.absorb(part)[1]
        messages += 1
    assert messages > 4
    assert state(ours) == state(owner)


def test_a_hostile_owner_is_bounded():
    ours = replica(keys_max=10, bytes_max=100)
    ours.absorb(delta(*((f"k/{i}", i + 1, b"x") for i in range(50))))
    assert len(ours.entries) == 10
    ours.absorb(delta(("k/0", 60, bytes(200)), after=50))
    assert ours.entries["k/0"].value == b"x"


# -- a model ---------------------------------------------------------


class OwnerAndReplicas(RuleBasedStateMachine):
    """One owner, three replicas, a network that keeps every delta for ever and delivers any of them at any time.

    What a complete replica claims to know, it knows: of what holds now at the owner, everything up to the replica's
    *upto* is there, and nothing that was removed. All it has was once written.
    """

    deltas = Bundle("deltas")

    @initialize()
    def begin(self):
        self.owner = replica()
        self.replicas = [replica() for _ in range(3)]
        self.written = {}
        self.holds = {}

    @rule(key=st.sampled_from("abc"), value=st.binary(max_size=1))
    def write(self, key, value):
        self.owner.write(key, value)
        self.written[self.owner.upto] = self.holds[key] = Entry(key, self.owner.upto, value)

    @rule(key=st.sampled_from("abc"))
    def remove(self, key):
        self.write(key, None)

    @rule(back=st.integers(0, 2))
    def collect(self, back):
        self.owner.raise_floor(max(0, self.owner.upto - back))

    @rule(target=deltas, which=st.integers(-1, 2), after=st.integers(0, 6), budget=st.sampled_from([0, 10_000]))
    def cut(self, which, after, budget):
        source = self.owner if which < 0 else self.replicas[which]
        if not source.complete:
            source = self.owner
        return source.delta(min(after, source.upto), budget)[0]

    @rule(delta=deltas, which=st.integers(0, 2))
    def deliver(self, delta, which):
        self.replicas[which].absorb(delta)

    @rule(which=st.integers(0, 2), peer=st.integers(-1, 2), budget=st.sampled_from([0, 10_000]))
    def sync(self, which, peer, budget):
        source = self.owner if peer < 0 else self.replicas[peer]
        ours = self.replicas[which]
        after = missing_after(source, ours.digest()) if source.complete else None
        if after is not None:
            ours.absorb(source.delta(after, budget)[0])

    @invariant()
    def what_is_claimed_is_true(self):
        for ours in self.replicas:
            for key, entry in ours.entries.items():
                assert entry == self.written[entry.version]
                assert entry.key == key
            for key, entry in self.holds.items():
                if ours.complete and entry.version <= ours.upto:
                    held = ours.entries.get(key)
                    assert held == entry or (held is None and entry.value is None)

    def teardown(self):
        for ours in self.replicas:
            for _ in range(100):
                after = missing_after(self.owner, ours.digest())
                if after is None:
                    break
                ours.absorb(self.owner.delta(after, 150)[0])
            assert dict(ours.values()) == dict(self.owner.values())


TestOwnerAndReplicas = OwnerAndReplicas.TestCase
TestOwnerAndReplicas.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_random_histories():
    """The same model under plain chance, which finds some of the rules' mutants sooner."""
    for seed in range(600):
        rng, model, deltas = Random(seed), OwnerAndReplicas(), []
        model.begin()
        for _ in range(40):
            match rng.choices(["write", "remove", "collect", "cut", "deliver", "sync"], [4, 2, 2, 4, 5, 3])[0]:
                case "write":
                    model.write(rng.choice("abc"), b"x")
                case "remove":
                    model.remove(rng.choice("abc"))
                case "collect":
                    model.collect(rng.randrange(3))
                case "cut":
                    deltas.append(model.cut(rng.randrange(-1, 3), rng.randrange(7), rng.choice([0, 10_000])))
                case "deliver" if deltas:
                    model.deliver(rng.choice(deltas), rng.randrange(3))
                case "sync":
                    model.sync(rng.randrange(3), rng.randrange(-1, 3), rng.choice([0, 10_000]))
            model.what_is_claimed_is_true()
        model.teardown()
