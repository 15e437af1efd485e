"""The log against a plain dict: random groups of writes, purges and restarts, on both engines.

A failure prints the steps that lead to it as a program.
"""

import uuid

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from mmesh.content import Modality
from mmesh.errors import InvalidField, MmeshError, RequestIdReused
from mmesh.values.tokens import Token
from services.index.log.ledger import Delete, DeleteUnchanged, Upsert
from tests.effort import EFFORT

IDS = st.sampled_from(["a", "b", "c", "d", "e"])
STEPS = st.one_of(
    st.tuples(st.just("put"), st.lists(st.tuples(IDS, st.sampled_from(Modality)), max_size=4)),
    st.tuples(st.just("delete"), st.lists(IDS, max_size=3)),
    st.tuples(st.just("delete_unchanged"), st.lists(st.tuples(IDS, st.booleans()), max_size=3)),
    st.tuples(st.just("refused"), IDS),
    st.tuples(st.just("again"), st.integers(0, 5)),
    st.tuples(st.just("reuse"), st.integers(0, 5)),
)
NEVER = (0, Modality.TEXT, True)


def refuse(types):
    raise InvalidField("candidates[0]", "does not fit")


def named(written):
    """Return what is to be said of a write: its token has a random stamp."""
    token = Token.parse(written.token)
    return token.epoch, token.seq, written.count


class LogMachine(RuleBasedStateMachine):
    """`rows` is what the log must hold; `view` is what a reader that follows it has seen."""

    def __init__(self, open_log, url, row, upsert):
        super().__init__()
        self.open, self.row, self.upsert = lambda: open_log(url), row, upsert
        self.writer, self.name = self.open(), f"c-{uuid.uuid4().hex[:12]}"
        self.epoch = self.writer.create(self.name).epoch
        self.seq, self.rows, self.answers = 0, {}, []
        self.view, self.applied = {}, 0

    @rule(steps=st.lists(STEPS, max_size=6))
    def write(self, steps):
        planned = [getattr(self, f"plan_{kind}")(given) for kind, given in steps]
        outcomes = self.writer.log.write([write for write, _ in planned])
        for outcome, (_, expected) in zip(outcomes, planned, strict=True):
            assert expected == (
                type(outcome) if isinstance(outcome, MmeshError) else named(outcome)
            )

    @rule()
    def purge(self):
        gone = [candidate_id for candidate_id, (_, _, deleted) in self.rows.items() if deleted]
        self.follow()
        assert self.writer.log.purge(-1) >= len(gone)
        for candidate_id in gone:
            del self.rows[candidate_id], self.view[candidate_id]

    @rule()
    def restart(self):
        self.writer.log.close()
        self.writer = self.open()

    def plan_put(self, entries):
        for candidate_id, modality in entries:
            self.seq += 1
            self.rows[candidate_id] = (self.seq, modality, False)
        rows = [self.row(candidate_id, modality) for candidate_id, modality in entries]
        write = self.upsert(rows, self.name, str(len(self.answers)))
        return write, self.answer(write, len(entries))

    def plan_delete(self, ids):
        write = Delete(self.name, ids, str(len(self.answers)))
        return write, self.answer(write, self.mark_deleted(ids))

    def plan_delete_unchanged(self, entries):
        seqs = {i: self.rows.get(i, NEVER)[0] - (not is_right) for i, is_right in entries}
        right = [i for i, seq in seqs.items() if self.rows.get(i, NEVER)[0] == seq]
        write = DeleteUnchanged(self.name, seqs, str(len(self.answers)))
        return write, self.answer(write, self.mark_deleted(right))

    def plan_refused(self, candidate_id):
        write = Upsert(self.name, [self.row(candidate_id)], refuse, f"no-{self.seq}")
        return write, InvalidField

    def plan_again(self, number):
        if not self.answers:
            return self.plan_put([])
        return self.answers[number % len(self.answers)]

    def plan_reuse(self, number):
        if not self.answers:
            return self.plan_put([])
        return Delete(self.name, ["else"], str(number % len(self.answers))), RequestIdReused

    def mark_deleted(self, ids):
        living = [i for i in dict.fromkeys(ids) if not self.rows.get(i, NEVER)[2]]
        for candidate_id in living:
            self.seq += 1
            self.rows[candidate_id] = (self.seq, self.rows[candidate_id][1], True)
        return len(living)

    def answer(self, write, count):
        self.answers.append((write, (self.epoch, self.seq, count)))
        return self.answers[-1][1]

    def follow(self):
        while self.applied < self.seq:
            rows, self.applied = self.writer.after(self.applied, limit=3, collection=self.name)
            states = zip(rows.seqs.tolist(), rows.modalities, rows.deleted.tolist(), strict=True)
            self.view |= zip(rows.ids, states, strict=True)

    @invariant()
    def holds_what_the_dict_holds(self):
        self.follow()
        assert self.view == self.rows
        head = self.writer.log.collection(self.name)
        living = {i: row for i, row in self.rows.items() if not row[2]}
        modalities = [modality for _, modality, _ in living.values()]
        assert head.counts == {modality: modalities.count(modality) for modality in Modality}
        assert (head.seq, self.applied) == (self.seq, self.seq)
        assert self.writer.ids(self.name) == sorted(living)


def test_random_writes_purges_and_restarts_leave_what_a_dict_holds(open_log, log_url, row, upsert):
    run_state_machine_as_test(
        lambda: LogMachine(open_log, log_url, row, upsert),
        settings=settings(
            max_examples=EFFORT.log_examples,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
