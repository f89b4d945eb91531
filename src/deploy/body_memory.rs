//! Memory budget for request bodies.
//!
//! The first MiB of each body has a budget of its own, so that a few large uploads that stall cannot use it
//! up and ordinary images are still answered; the bytes beyond it share a second budget. Both are semaphores
//! with one permit per 64 KiB, and nothing ever waits for a permit: a body that does not fit is refused.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit.
const CHUNK: usize = 64 << 10;
/// Bytes of each body that count against the first budget.
const FIRST_MIB: usize = 1 << 20;
/// Largest size of the first budget in bytes, unless there are more connections than chunks in it.
const FIRST_MIB_BUDGET: usize = 64 << 20;

/// Memory budget of one service.
pub(super) struct BodyMemory {
    first_mib: Arc<Semaphore>,
    rest: Arc<Semaphore>,
}

/// Memory that one body holds until it is dropped.
pub(super) struct Reservation {
    first_mib: Permits,
    rest: Permits,
}

struct Permits {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl BodyMemory {
    /// Creates a budget with 1 MiB for each connection, up to 64 MiB in all but at least one chunk each, and
    /// `rest` bytes for what exceeds the first MiB of a body.
    pub fn new(connections: usize, rest: usize) -> Self {
        let of = |chunks: usize| Arc::new(Semaphore::new(chunks.min(Semaphore::MAX_PERMITS)));
        let chunks = connections.saturating_mul(FIRST_MIB).min(FIRST_MIB_BUDGET) / CHUNK;
        Self { first_mib: of(chunks.max(connections)), rest: of(rest.div_ceil(CHUNK)) }
    }

    /// Reserves one chunk, the least that a body takes; `None` if the budget is used up.
    pub fn reserve(&self) -> Option<Reservation> {
        let of = |budget: &Arc<Semaphore>| Permits { budget: Arc::clone(budget), held: None };
        let mut reservation = Reservation { first_mib: of(&self.first_mib), rest: of(&self.rest) };
        reservation.grow_to(1).then_some(reservation)
    }
}

impl Reservation {
    /// Extends the reservation to a body of so many bytes; returns false if the budget does not allow it.
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        self.first_mib.grow_to(bytes.min(FIRST_MIB)) && self.rest.grow_to(bytes.saturating_sub(FIRST_MIB))
    }
}

impl Permits {
    fn grow_to(&mut self, bytes: usize) -> bool {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(CHUNK).saturating_sub(held);
        if more == 0 {
            return true;
        }
        let Ok(more) = u32::try_from(more) else { return false };
        let Ok(more) = Arc::clone(&self.budget).try_acquire_many_owned(more) else { return false };
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
    fn large_bodies_leave_memory_for_the_first_mib_of_others() {
        let memory = BodyMemory::new(4, 8 << 20);
        let mut large: Vec<_> = (0..2).map(|_| memory.reserve().unwrap()).collect();
        assert!(large.iter_mut().all(|it| it.grow_to(5 << 20)));
        let mut third = memory.reserve().unwrap();
        assert!(third.grow_to(1 << 20) && !third.grow_to(2 << 20), "the rest is used up");
        let mut last = memory.reserve().unwrap();
        assert!(last.grow_to(1 << 20) && memory.reserve().is_none(), "four connections of 16 chunks");
        drop((large, third));
        assert!(memory.reserve().unwrap().grow_to(9 << 20) && last.grow_to(9 << 20), "released when dropped");
    }

    #[test]
    fn a_growing_body_takes_only_the_additional_chunks() {
        let memory = BodyMemory::new(1, CHUNK);
        let mut reservation = memory.reserve().unwrap();
        assert!((1..=CHUNK).step_by(1000).all(|it| reservation.grow_to(it)));
        assert!(reservation.grow_to(FIRST_MIB + CHUNK));
        assert!(!reservation.grow_to(FIRST_MIB + CHUNK + 1) && !reservation.grow_to(usize::MAX));
    }

    #[test]
    fn each_of_many_connections_gets_a_chunk() {
        let memory = BodyMemory::new(5000, 0);
        let all: Vec<_> = (0..5000).map_while(|_| memory.reserve()).collect();
        assert!(all.len() == 5000 && memory.reserve().is_none());
    }
}
