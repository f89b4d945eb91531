//! Model of the protocol at a remote as a small state machine, which knows nothing of bytes, and of time only
//! ages.
//!
//! Three clones push, fetch, merge and clear. Each request is one step, and between any two of them a clone
//! may be killed or refused, another may act, and time may pass. A change that its client gave up may be made
//! later. `remote_model_checks` visits all states; `remote_steps` drives real clones through the same steps.
//!
//! It is assumed that an operation ends, and that what it asked for is done, within a week; and that no push
//! starts in the moment in which two clones delete the same leftover.

use std::collections::BTreeMap;

use crate::remote_files::{
    ALL, File, List, OLDEST, Objects, Pack, Packs, ROOT, Remote, objects_of, packs_of, set_of,
};

/// A request of an operation, with the steps that follow from its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    Put(File),
    Delete(File),
    /// Reads the ages of all that is checked next, and leaves out what is young.
    Find,
    /// Reads the age of a pack without index, which is deleted if it is old.
    CheckPack(Pack),
    /// Reads the age of a list; if it is old, these indexes and packs are deleted.
    CheckList(List, Packs, Packs),
    /// Reads a pack in which a reader found damage, and writes it again.
    Repair(Pack),
    /// Reads packs and writes them as one; also those that had no index when the remote was listed.
    Merge(Packs, Packs),
    /// Reads an object.
    Read(Pack),
    /// Says that all is sent: not a request.
    Say,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Push,
    Clear,
    Fetch,
}

impl Request {
    /// Makes the change that is asked for, if any.
    fn make(self, remote: &mut Remote) {
        match self {
            Self::Put(file) => remote.put(file),
            Self::Delete(file) => remote.delete(file),
            _ => {}
        }
    }
}

/// Operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// Requests that are left, the last one first.
    pub left: Vec<Request>,
    /// True once a week began since it started.
    is_long: bool,
}

/// State of the remote, of the clones, and of what may still happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    pub remote: Remote,
    pub clones: [Option<Process>; 3],
    /// Change that its client gave up, and whether a week began since its operation started.
    pub late: Option<(Request, bool)>,
    /// True if a push said that all is sent.
    pub is_said: bool,
    /// True if a reader found no pack where an index named one.
    pub is_pack_gone: bool,
    pub operations_left: u8,
    pub faults_left: u8,
    pub weeks_left: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Start(usize, Operation),
    /// The next request of a clone.
    Step(usize),
    /// A clone is killed or refused.
    Stop(usize),
    /// A clone gets no answer and gives up; its change is made later.
    GiveUp(usize),
    /// A clone gets no answer and asks once more; the first request is done later.
    Repeat(usize),
    /// The late change is made.
    Land,
    /// A stored pack is damaged.
    Damage(Pack),
    /// A week passes.
    Wait,
}

/// Names of files at a real remote.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub packs: BTreeMap<Pack, String>,
    pub lists: BTreeMap<List, String>,
}

/// Rules of the protocol, each of which can be taken out, and the bounds of a check.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// A pack goes before its index.
    pub is_index_last: bool,
    /// Root pages go after all others.
    pub is_root_last: bool,
    /// A tree is not sent if neither side has all of it.
    pub sends_whole_trees: bool,
    /// Packs without an index are used again if they are younger, in weeks.
    pub reuse_age: u8,
    /// Files are removed if they are older, in weeks.
    pub grace: u8,
    /// Ages are measured by the remote's own clock, not by that of the clone.
    pub uses_remote_clock: bool,
    /// Objects of a leftover too old to be used are sent in a pack of another name.
    pub names_anew: bool,
    /// A list goes after the index of the pack that it names.
    pub is_list_last: bool,
    /// Lists count only if the pack that they name is there.
    pub checks_lists: bool,
    /// The index of a replaced pack is removed before the pack.
    pub removes_index_first: bool,
    /// Names of packs and lists at a real remote: clones take them in this order.
    pub names: Names,
    pub bounds: (u8, u8, u8),
    pub starts: Vec<Remote>,
}

/// Objects that each clone has: the third lacks one.
const STORES: [Objects; 3] = [ALL, ALL, ALL - 1];
/// Weeks by which the clock of each clone is behind.
const BEHIND: [u8; 3] = [OLDEST, 0, 0];
const OPERATIONS: [&[Operation]; 3] = [
    &[Operation::Push],
    &[Operation::Push, Operation::Clear],
    &[Operation::Push, Operation::Clear, Operation::Fetch],
];

impl State {
    /// Returns all that can happen next.
    pub fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (clone, process) in self.clones.iter().enumerate() {
            let Some(process) = process else {
                let may_start = |operation: &&Operation| {
                    self.operations_left > 0
                        && !(**operation == Operation::Push && self.deletes_what_is_gone())
                };
                let starts = OPERATIONS[clone].iter().filter(may_start);
                actions.extend(starts.map(|operation| Action::Start(clone, *operation)));
                continue;
            };
            let next = process.left.last().expect("a process has a request left");
            actions.push(Action::Step(clone));
            let can_be_late = self.late.is_none() && matches!(next, Request::Put(_) | Request::Delete(_));
            if self.faults_left > 0 && can_be_late {
                // The change may also never be made.
                actions.push(Action::GiveUp(clone));
                actions.extend(matches!(next, Request::Put(_)).then_some(Action::Repeat(clone)));
            } else if self.faults_left > 0 {
                actions.push(Action::Stop(clone));
            }
        }
        actions.extend(self.late.map(|_| Action::Land));
        if self.faults_left > 0 {
            let intact = self.remote.packs() & self.remote.indexes & !self.remote.damaged;
            actions.extend(packs_of(intact).map(Action::Damage));
        }
        let is_long = self.clones.iter().flatten().any(|process| process.is_long);
        if self.weeks_left > 0 && !is_long {
            actions.push(Action::Wait);
        }
        actions
    }

    /// Returns true if a clone is about to delete a pack that another one has deleted.
    fn deletes_what_is_gone(&self) -> bool {
        let next = self.clones.iter().flatten().filter_map(|process| process.left.last());
        let mut requests = next.chain(self.late.iter().map(|(request, _)| request));
        requests.any(|next| matches!(next, Request::Delete(File::Pack(pack)) if !self.remote.has(*pack)))
    }
}

impl Protocol {
    pub fn new(starts: Vec<Remote>, bounds: (u8, u8, u8)) -> Self {
        Self {
            is_index_last: true,
            is_root_last: true,
            sends_whole_trees: true,
            reuse_age: 1,
            grace: 2,
            uses_remote_clock: true,
            names_anew: true,
            is_list_last: true,
            checks_lists: true,
            removes_index_first: true,
            names: Names::default(),
            bounds,
            starts,
        }
    }

    pub fn start(&self, remote: &Remote) -> State {
        let (operations_left, faults_left, weeks_left) = self.bounds;
        State {
            remote: remote.clone(),
            clones: [None, None, None],
            late: None,
            is_said: false,
            is_pack_gone: false,
            operations_left,
            faults_left,
            weeks_left,
        }
    }

    /// Returns the requests of an operation that lists the remote now, the first one first.
    fn plan(&self, remote: &Remote, clone: usize, operation: Operation) -> Vec<Request> {
        let visible = remote.visible(self.checks_lists);
        match operation {
            Operation::Push => {
                let (mut plan, added) = self.plan_push(remote, clone);
                let small = visible | added;
                plan.extend((small.count_ones() > 1).then(|| Request::Merge(small, remote.unindexed())));
                let is_lasting = |pack: &Pack| pack.objects() & !STORES[clone] != 0;
                let notes = packs_of(remote.notes & remote.damaged).filter(is_lasting);
                plan.extend(self.plan_clear(remote, added, set_of(notes)));
                plan
            }
            Operation::Clear => self.plan_clear(remote, 0, remote.notes),
            Operation::Fetch => {
                let lacks = |pack: &Pack| pack.objects() & !STORES[clone] != 0;
                let pack = packs_of(visible).find(lacks);
                // A note is there already.
                let pack = pack.filter(|pack| remote.notes & pack.bit() == 0);
                pack.map(Request::Read).into_iter().collect()
            }
        }
    }

    /// Also returns the packs that it sends or uses again.
    fn plan_push(&self, remote: &Remote, clone: usize) -> (Vec<Request>, Packs) {
        let (visible, has) = (remote.visible(self.checks_lists), STORES[clone]);
        let mut plan = Vec::new();
        for pack in packs_of(remote.notes) {
            let is_visible = visible & pack.bit() != 0;
            plan.push(if is_visible { Request::Repair(pack) } else { Request::Delete(File::Note(pack)) });
        }
        let lacking = ALL & !objects_of(visible);
        let is_whole = lacking & !has == 0;
        let mut sent = lacking & has;
        if !is_whole && self.sends_whole_trees {
            sent &= !ROOT;
        }
        let order = if self.is_root_last { [1, 2, ROOT] } else { [ROOT, 1, 2] };
        let (mut first, mut second, mut added) = (Vec::new(), Vec::new(), 0);
        for object in order.into_iter().filter(|object| sent & object != 0) {
            let (pack, is_there) = self.choose_pack(remote, remote.unindexed(), clone, object);
            added |= pack.bit();
            if !is_there {
                first.push(Request::Put(File::Pack(pack)));
            }
            second.push(Request::Put(File::Index(pack)));
        }
        if !self.is_index_last {
            std::mem::swap(&mut first, &mut second);
        }
        plan.extend(first.into_iter().chain(second));
        if is_whole {
            plan.extend((!remote.has_roots).then_some(Request::Put(File::Roots)));
            plan.push(Request::Say);
        }
        (plan, added)
    }

    /// Returns the pack in which objects are sent, and whether it is there already. `unindexed` are packs
    /// that had no index when the remote was listed.
    fn choose_pack(&self, remote: &Remote, unindexed: Packs, clone: usize, objects: Objects) -> (Pack, bool) {
        let pack = Pack::new(objects, 0);
        if unindexed & pack.bit() == 0 {
            return (pack, false);
        }
        if remote.age(pack).is_some_and(|age| self.seen_age(age, clone) < self.reuse_age) {
            return (pack, true);
        }
        if !self.names_anew {
            return (pack, false);
        }
        (Pack::new(objects, 1 + clone as u8), false)
    }

    /// Returns an age by the clock that is used.
    fn seen_age(&self, age: u8, clone: usize) -> u8 {
        if self.uses_remote_clock { age } else { age.saturating_sub(BEHIND[clone]) }
    }

    /// Returns packs in the order of their names.
    fn sorted(&self, packs: Packs) -> Vec<Pack> {
        let mut sorted: Vec<Pack> = packs_of(packs).collect();
        sorted.sort_by_key(|pack| self.names.packs.get(pack));
        sorted
    }

    /// `notes` are those that are left then.
    fn plan_clear(&self, remote: &Remote, added: Packs, notes: Packs) -> Vec<Request> {
        let unused = self.sorted(remote.unindexed() & !added);
        let intact = objects_of(remote.visible(self.checks_lists) & !notes);
        let is_elsewhere = |list: &List| objects_of(list.packs & remote.indexes) & !intact == 0;
        let mut lists: Vec<List> = remote.valid_lists(self.checks_lists).filter(is_elsewhere).collect();
        lists.sort_by_key(|list| self.names.lists.get(list));
        let packs = unused.into_iter().map(Request::CheckPack);
        let lists = lists.into_iter().map(|list| Request::CheckList(list, 0, 0));
        let checks: Vec<_> = packs.chain(lists).collect();
        let find = (!checks.is_empty()).then_some(Request::Find);
        find.into_iter().chain(checks).collect()
    }

    /// Returns true if a check would delete something.
    fn is_due(&self, remote: &Remote, check: Request) -> bool {
        let age = match check {
            Request::CheckPack(pack) => remote.age(pack),
            Request::CheckList(list, ..) => remote.list_age(list),
            _ => return true,
        };
        age.is_some_and(|age| age > self.grace)
    }

    /// Returns the requests that follow from the answer to one, the first one first.
    fn follow(&self, remote: &Remote, clone: usize, request: Request) -> Vec<Request> {
        match request {
            check if !self.is_due(remote, check) => Vec::new(),
            Request::CheckPack(pack) => vec![Request::Delete(File::Pack(pack))],
            Request::CheckList(list, indexes, packs) => {
                let indexes = self.sorted(indexes).into_iter().map(File::Index);
                let packs = self.sorted(packs).into_iter().map(File::Pack);
                let mut deletes: Vec<_> = indexes.chain(packs).map(Request::Delete).collect();
                if !self.removes_index_first {
                    deletes.reverse();
                }
                deletes.push(Request::Delete(File::Replaced(list)));
                deletes
            }
            Request::Repair(pack) if remote.damaged & pack.bit() == 0 => {
                vec![Request::Delete(File::Note(pack))]
            }
            Request::Repair(pack) if pack.objects() & !STORES[clone] == 0 => vec![
                Request::Put(File::Pack(pack)),
                Request::Put(File::Index(pack)),
                Request::Delete(File::Note(pack)),
            ],
            Request::Merge(small, unindexed) => self.merge(remote, clone, small, unindexed),
            Request::Read(pack) if remote.damaged & pack.bit() != 0 => {
                vec![Request::Put(File::Note(pack))]
            }
            _ => Vec::new(),
        }
    }

    /// Merges the packs of a set that are intact.
    fn merge(&self, remote: &Remote, clone: usize, small: Packs, unindexed: Packs) -> Vec<Request> {
        let intact = small & remote.packs() & !remote.damaged;
        if intact.count_ones() < 2 {
            return Vec::new();
        }
        let (by, is_there) = self.choose_pack(remote, unindexed & !small, clone, objects_of(intact));
        let list = File::Replaced(List { packs: intact & !by.bit(), by });
        let files = [File::Pack(by), File::Index(by), list];
        let order = if self.is_list_last { [0, 1, 2] } else { [2, 0, 1] };
        let files = order.map(|at| files[at]).into_iter();
        files.filter(|file| !(is_there && *file == File::Pack(by))).map(Request::Put).collect()
    }

    /// Returns the state after an action that [`State::actions`] returned.
    pub fn next(&self, state: &State, action: Action) -> State {
        let mut state = state.clone();
        let late = |process: &Process| process.left.last().map(|request| (*request, process.is_long));
        match action {
            Action::Start(clone, operation) => {
                state.operations_left -= 1;
                let mut left = self.plan(&state.remote, clone, operation);
                left.reverse();
                state.clones[clone] = Some(Process { left, is_long: false });
            }
            Action::Step(clone) => self.step(&mut state, clone),
            Action::Stop(clone) => {
                state.faults_left -= 1;
                state.clones[clone] = None;
            }
            Action::GiveUp(clone) => {
                state.faults_left -= 1;
                state.late = state.clones[clone].take().as_ref().and_then(late);
            }
            Action::Repeat(clone) => {
                state.faults_left -= 1;
                state.late = state.clones[clone].as_ref().and_then(late);
                self.step(&mut state, clone);
            }
            Action::Land => {
                if let Some((request, _)) = state.late.take() {
                    request.make(&mut state.remote);
                }
            }
            Action::Damage(pack) => {
                state.faults_left -= 1;
                state.remote.damage(pack);
            }
            Action::Wait => {
                state.weeks_left -= 1;
                state.remote.grow_old();
                state.clones.iter_mut().flatten().for_each(|process| process.is_long = true);
                state.late = state.late.filter(|(_, is_long)| !is_long).map(|(request, _)| (request, true));
            }
        }
        for process in &mut state.clones {
            // Needs no request.
            while process.as_mut().is_some_and(|it| it.left.pop_if(|next| *next == Request::Say).is_some()) {
                state.is_said = true;
            }
            process.take_if(|process| process.left.is_empty());
        }
        state
    }

    fn step(&self, state: &mut State, clone: usize) {
        let process = state.clones[clone].as_mut().expect("the clone is at work");
        let request = process.left.pop().expect("a process has a request left");
        if let Request::Read(pack) = request {
            state.is_pack_gone |= !state.remote.has(pack);
        }
        let following = self.follow(&state.remote, clone, request);
        if request == Request::Find {
            process.left.retain(|check| self.is_due(&state.remote, *check));
            for check in &mut process.left {
                if let Request::CheckList(list, indexes, packs) = check {
                    // Files that are gone already need no removal.
                    *indexes = list.packs & state.remote.indexes;
                    *packs = list.packs & state.remote.packs();
                }
            }
        }
        process.left.extend(following.into_iter().rev());
        request.make(&mut state.remote);
    }

    /// Promises that hold in every state.
    pub const PROMISES: [(&str, fn(&Self, &State) -> bool); 4] = [
        ("a root that readers trust has all its pages", |protocol, state| {
            let there = objects_of(state.remote.visible(protocol.checks_lists));
            there & ROOT == 0 || there == ALL
        }),
        ("no index names a pack that is removed", |_, state| {
            state.remote.indexes & !state.remote.packs() == 0
        }),
        ("readers find what was said to be sent", |protocol, state| {
            !state.is_said || objects_of(state.remote.visible(protocol.checks_lists)) == ALL
        }),
        ("a reader finds each pack that an index names", |_, state| !state.is_pack_gone),
    ];
}
