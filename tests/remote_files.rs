//! Files of a remote as the model of its protocol sees them: packs by their objects, indexes, lists, notes.
//!
//! There are three objects, of which the root page names the other two. A pack is known by its objects, and
//! by a number, as the same objects may be in several packs. Ages are whole weeks.

/// Set of objects, one bit each.
pub type Objects = u8;
pub const ROOT: Objects = 4;
pub const ALL: Objects = 7;
/// Set of packs, one bit each.
pub type Packs = u32;
/// Largest age that is told apart, in weeks.
pub const OLDEST: u8 = 3;
/// Number of packs: for each set of objects one, and one that each clone names anew.
const PACKS: u8 = 32;

/// Pack: its objects, and a number above them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pack(pub u8);

/// A list of packs that another one replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct List {
    pub packs: Packs,
    pub by: Pack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum File {
    Pack(Pack),
    Index(Pack),
    Replaced(List),
    Note(Pack),
    Roots,
}

/// Files of a remote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Remote {
    /// Ages of packs, plus one; zero: it is not there.
    ages: [u8; PACKS as usize],
    pub indexes: Packs,
    pub damaged: Packs,
    pub notes: Packs,
    /// Lists with their ages.
    pub lists: Vec<(List, u8)>,
    pub has_roots: bool,
}

impl Pack {
    pub fn new(objects: Objects, number: u8) -> Self {
        Self(objects | number << 3)
    }

    pub fn number(self) -> u8 {
        self.0 >> 3
    }

    pub fn objects(self) -> Objects {
        self.0 & ALL
    }

    pub fn bit(self) -> Packs {
        1 << self.0
    }
}

/// Returns the packs of a set.
pub fn packs_of(set: Packs) -> impl Iterator<Item = Pack> {
    (0..PACKS).map(Pack).filter(move |pack| set & pack.bit() != 0)
}

pub fn set_of(packs: impl Iterator<Item = Pack>) -> Packs {
    packs.fold(0, |set, pack| set | pack.bit())
}

pub fn objects_of(packs: Packs) -> Objects {
    packs_of(packs).fold(0, |objects, pack| objects | pack.objects())
}

impl Remote {
    /// Creates a remote with these packs of an age, of which some have an index.
    pub fn with(packs: &[Pack], age: u8, indexed: &[Pack]) -> Self {
        let mut remote = Self { indexes: set_of(indexed.iter().copied()), ..Self::default() };
        packs.iter().for_each(|pack| remote.ages[usize::from(pack.0)] = age + 1);
        remote
    }

    pub fn packs(&self) -> Packs {
        set_of((0..PACKS).map(Pack).filter(|pack| self.has(*pack)))
    }

    pub fn has(&self, pack: Pack) -> bool {
        self.age(pack).is_some()
    }

    pub fn age(&self, pack: Pack) -> Option<u8> {
        self.ages[usize::from(pack.0)].checked_sub(1)
    }

    /// Returns the packs without an index.
    pub fn unindexed(&self) -> Packs {
        self.packs() & !self.indexes
    }

    pub fn list_age(&self, list: List) -> Option<u8> {
        self.lists.iter().find(|(other, _)| *other == list).map(|(_, age)| *age)
    }

    /// Adds a file of this age.
    pub fn add(&mut self, file: File, age: u8) {
        self.put(file);
        match file {
            File::Pack(pack) => self.ages[usize::from(pack.0)] = age.min(OLDEST) + 1,
            File::Replaced(list) => {
                self.lists
                    .iter_mut()
                    .filter(|(other, _)| *other == list)
                    .for_each(|(_, it)| *it = age.min(OLDEST));
            }
            File::Index(_) | File::Note(_) | File::Roots => {}
        }
    }

    pub fn damage(&mut self, pack: Pack) {
        self.damaged |= pack.bit();
    }

    pub fn put(&mut self, file: File) {
        match file {
            File::Pack(pack) => {
                self.ages[usize::from(pack.0)] = 1;
                self.damaged &= !pack.bit();
            }
            File::Index(pack) => self.indexes |= pack.bit(),
            File::Replaced(list) => {
                self.lists.retain(|(other, _)| *other != list);
                self.lists.push((list, 0));
                self.lists.sort_unstable();
            }
            File::Note(pack) => self.notes |= pack.bit(),
            File::Roots => self.has_roots = true,
        }
    }

    pub fn delete(&mut self, file: File) {
        match file {
            File::Pack(pack) => {
                self.ages[usize::from(pack.0)] = 0;
                self.damaged &= !pack.bit();
            }
            File::Index(pack) => self.indexes &= !pack.bit(),
            File::Replaced(list) => self.lists.retain(|(other, _)| *other != list),
            File::Note(pack) => self.notes &= !pack.bit(),
            File::Roots => self.has_roots = false,
        }
    }

    pub fn grow_old(&mut self) {
        self.ages.iter_mut().filter(|age| **age > 0).for_each(|age| *age = (*age + 1).min(OLDEST + 1));
        self.lists.iter_mut().for_each(|(_, age)| *age = (*age + 1).min(OLDEST));
    }

    /// Lists that count: the pack that they name is there.
    pub fn valid_lists(&self, checks_lists: bool) -> impl Iterator<Item = List> {
        let complete = self.indexes & self.packs();
        let is_there = move |list: &List| complete & list.by.bit() != 0 || !checks_lists;
        self.lists.iter().map(|(list, _)| *list).filter(is_there)
    }

    /// Returns the packs from which readers take objects.
    pub fn visible(&self, checks_lists: bool) -> Packs {
        let replaced = self.valid_lists(checks_lists).fold(0, |set, list| set | list.packs);
        self.indexes & self.packs() & !replaced
    }
}
