//! Room in memory for the bodies of requests.
//!
//! The beginning of each body has room of its own: a few large uploads that stall can fill the rest, and pictures
//! are answered all the same.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room is handed out in pieces of this size.
const PIECE: usize = 64 << 10;
/// What counts as the beginning of a body.
const BEGINNING: usize = 1 << 20;
/// Room for all beginnings, unless there are more connections than pieces in it.
const BEGINNINGS: usize = 64 << 20;

/// All the room there is.
pub(super) struct Rooms {
    beginnings: Arc<Semaphore>,
    rest: Arc<Semaphore>,
}

/// Room that one body holds until it is dropped.
pub(super) struct Room {
    beginnings: Pieces,
    rest: Pieces,
}

struct Pieces {
    all: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Rooms {
    /// A whole beginning for each connection, as far as that goes, but at least a piece; and `rest` bytes for what
    /// is longer.
    pub fn new(connections: usize, rest: usize) -> Self {
        let of = |pieces: usize| Arc::new(Semaphore::new(pieces.min(Semaphore::MAX_PERMITS)));
        let whole = connections.saturating_mul(BEGINNING).min(BEGINNINGS) / PIECE;
        Self { beginnings: of(whole.max(connections)), rest: of(rest.div_ceil(PIECE)) }
    }

    /// The least that a body takes; none when there is none left.
    pub fn enter(&self) -> Option<Room> {
        let of = |all: &Arc<Semaphore>| Pieces { all: Arc::clone(all), held: None };
        let mut room = Room { beginnings: of(&self.beginnings), rest: of(&self.rest) };
        room.hold(1).then_some(room)
    }
}

impl Room {
    /// Takes what a body of so many bytes needs; false when it is not there.
    pub fn hold(&mut self, bytes: usize) -> bool {
        self.beginnings.hold(bytes.min(BEGINNING)) && self.rest.hold(bytes.saturating_sub(BEGINNING))
    }
}

impl Pieces {
    fn hold(&mut self, bytes: usize) -> bool {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(PIECE).saturating_sub(held);
        if more == 0 {
            return true;
        }
        let Ok(more) = u32::try_from(more) else { return false };
        let Ok(more) = Arc::clone(&self.all).try_acquire_many_owned(more) else { return false };
        match &mut self.held {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_room_for_the_beginnings_of_others() {
        let rooms = Rooms::new(4, 8 << 20);
        let mut large: Vec<_> = (0..2).map(|_| rooms.enter().unwrap()).collect();
        assert!(large.iter_mut().all(|it| it.hold(5 << 20)));
        let mut third = rooms.enter().unwrap();
        assert!(third.hold(1 << 20) && !third.hold(2 << 20), "the rest is full");
        let mut last = rooms.enter().unwrap();
        assert!(last.hold(1 << 20) && rooms.enter().is_none(), "four beginnings of 16 pieces");
        drop((large, third));
        assert!(rooms.enter().unwrap().hold(9 << 20) && last.hold(9 << 20), "given back when dropped");
    }

    #[test]
    fn a_body_that_grows_takes_only_what_is_new() {
        let rooms = Rooms::new(1, PIECE);
        let mut room = rooms.enter().unwrap();
        assert!((1..=PIECE).step_by(1000).all(|it| room.hold(it)));
        assert!(room.hold(BEGINNING + PIECE));
        assert!(!room.hold(BEGINNING + PIECE + 1) && !room.hold(usize::MAX));
    }

    #[test]
    fn each_of_many_connections_has_a_piece() {
        let rooms = Rooms::new(5000, 0);
        let all: Vec<_> = (0..5000).map_while(|_| rooms.enter()).collect();
        assert!(all.len() == 5000 && rooms.enter().is_none());
    }
}
