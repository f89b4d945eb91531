//! Checks all states of the model of a remote: together its rules suffice, and each of them is needed.

use std::collections::BTreeMap;

use stateright::{Checker as _, Model, Property};

use crate::{
    remote_files::{ALL, File, List, Pack, ROOT, Remote, set_of},
    remote_model::{Action, Protocol, State},
};

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        self.starts.iter().map(|remote| self.start(remote)).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.actions());
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(self.next(state, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        Self::PROMISES.iter().map(|(name, holds)| Property::always(name, *holds)).collect()
    }
}

/// Returns a remote with all objects, of which each is in a pack of its own.
pub fn complete() -> Remote {
    let packs = [1, 2, ROOT].map(|object| Pack::new(object, 0));
    let mut remote = Remote::with(&packs, 0, &packs);
    remote.add(File::Roots, 0);
    remote
}

/// Returns a remote whose packs were merged this many weeks ago.
pub fn merged(age: u8) -> Remote {
    let (packs, by) = ([1, 2, ROOT].map(|object| Pack::new(object, 0)), Pack::new(ALL, 0));
    let all = [&packs[..], &[by]].concat();
    let mut remote = Remote::with(&all, age, &all);
    remote.add(File::Replaced(List { packs: set_of(packs.into_iter()), by }), age);
    remote.add(File::Roots, age);
    remote
}

/// Returns a remote at which a push was killed this many weeks ago, after one index of two packs.
pub fn killed(age: u8) -> Remote {
    let packs = [1, 2].map(|object| Pack::new(object, 0));
    Remote::with(&packs, age, &packs[..1])
}

/// Visits all states within bounds: numbers of operations, faults and weeks. Returns how many there are, and
/// the promises that one of them breaks, each with the steps that lead there.
fn check(protocol: Protocol) -> (usize, BTreeMap<&'static str, String>) {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    let describe = |(state, action): (State, Option<Action>)| format!("{:?}\n  {action:?}", state.remote);
    let found = checker.discoveries().into_iter().map(|(promise, path)| {
        let steps: Vec<_> = path.into_vec().into_iter().map(describe).collect();
        (promise, steps.join("\n"))
    });
    (checker.unique_state_count(), found.collect())
}

/// Bounds: from each remote two or three operations of three clones, up to two faults and two weeks.
#[test]
fn no_reachable_state_breaks_a_promise() {
    let mut states = 0;
    for (start, bounds) in [
        (Remote::default(), (2, 1, 1)),
        (complete(), (2, 2, 1)),
        (complete(), (3, 0, 2)),
        (merged(2), (2, 2, 1)),
        (merged(2), (3, 0, 1)),
        (killed(2), (2, 0, 2)),
        (killed(2), (2, 1, 1)),
    ] {
        let (visited, broken) = check(Protocol::new(vec![start], bounds));
        states += visited;
        assert!(broken.is_empty(), "{broken:#?}");
    }
    assert!(states > 500_000, "{states}");
}

/// Takes a rule out of the protocol.
type Break = fn(&mut Protocol);

#[test]
fn without_any_of_its_rules_the_protocol_breaks_a_promise() {
    let (whole, removed) =
        ("a root that readers trust has all its pages", "no index names a pack that is removed");
    let (found, gone) =
        ("readers find what was said to be sent", "a reader finds each pack that an index names");
    let rules: [(Break, Remote, (u8, u8, u8), &str); 10] = [
        (|it| it.is_index_last = false, Remote::default(), (1, 0, 0), removed),
        (|it| it.is_root_last = false, Remote::default(), (1, 0, 0), whole),
        (|it| it.sends_whole_trees = false, Remote::default(), (1, 0, 0), whole),
        (|it| it.reuse_age = 9, killed(2), (2, 0, 1), removed),
        // The grace period is shorter than the age up to which packs are used again.
        (|it| it.grace = 0, killed(0), (2, 0, 1), removed),
        (|it| it.grace = 0, complete(), (3, 0, 1), gone),
        (|it| it.uses_remote_clock = false, killed(2), (2, 0, 1), removed),
        (|it| it.names_anew = false, killed(3), (2, 0, 0), removed),
        // Either of two rules suffices: lists go last, and count only if the pack is there that they name.
        (|it| (it.is_list_last, it.checks_lists) = (false, false), complete(), (2, 0, 0), found),
        (|it| it.removes_index_first = false, merged(3), (1, 0, 0), removed),
    ];
    for (number, (take_out, start, bounds, promise)) in rules.into_iter().enumerate() {
        let mut protocol = Protocol::new(vec![start], bounds);
        take_out(&mut protocol);
        let (states, broken) = check(protocol);
        assert!(broken.contains_key(promise), "rule {number}: {states} states break {broken:?}");
    }
}
