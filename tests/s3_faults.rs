//! Faults of the fake S3, all of which follow from a seed, so that a run can be repeated.
//!
//! The fault of a request follows from its method, its key and the number of such requests before it, not
//! from the order in which requests of several processes arrive.

use std::time::Duration;

use axum::{body::Bytes, http::StatusCode};

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// An answer that says no; nothing is done.
    Refused(StatusCode, &'static str),
    /// The connection is closed without an answer; nothing is done.
    Dropped,
    /// It is done, but the connection is closed without an answer.
    LostAnswer,
    /// The connection is closed without an answer, and it is done after this many further requests.
    Late(u64),
    /// The answer ends in the middle of its body.
    CutOff,
}

/// Shares of requests that fail, in thousandths, and the speed of the line.
#[derive(Clone, Debug)]
pub struct Faults {
    seed: u64,
    /// Of requests that are refused once.
    refused: u64,
    /// Of keys that are refused each time.
    closed: u64,
    /// Of requests whose connection is closed before, during or after them.
    dropped: u64,
    /// Of objects that are damaged once they are stored.
    pub damaged: u64,
    latency: Duration,
    /// Bytes per second.
    rate: u64,
}

const REFUSALS: [(StatusCode, &str); 3] = [
    (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    (StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
    (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
];

/// Returns a number that follows from a seed and a label.
pub fn draw(seed: u64, label: &str) -> u64 {
    let hash = blake3::hash(format!("{seed} {label}").as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap())
}

/// Returns one of the choices, as the seed and the label say.
pub fn choose<T: Copy>(seed: u64, label: &str, choices: &[T]) -> T {
    choices[draw(seed, label) as usize % choices.len()]
}

impl Faults {
    /// Draws how bad the service is: each kind of fault is absent, rare or frequent.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            refused: choose(seed, "refused", &[0, 10, 40]),
            closed: choose(seed, "closed", &[0, 0, 20, 60]),
            dropped: choose(seed, "dropped", &[0, 10, 40]),
            damaged: choose(seed, "damaged", &[0, 0, 20, 100]),
            latency: Duration::from_millis(choose(seed, "latency", &[0, 0, 1, 3])),
            rate: choose(seed, "rate", &[1_000_000, 10_000_000, 1_000_000_000]),
        }
    }

    /// Returns the outcome of the n-th request of this method for this key.
    pub fn of_request(&self, method: &str, key: &str, n: u64) -> Fault {
        let (status, code) = choose(self.seed, &format!("code {method} {key} {n}"), &REFUSALS);
        if draw(self.seed, &format!("closed {method} {key}")) % 1000 < self.closed {
            let denied = (StatusCode::FORBIDDEN, "AccessDenied");
            let (status, code) = choose(self.seed, &format!("closed {key}"), &[denied, (status, code)]);
            return Fault::Refused(status, code);
        }
        let label = format!("{method} {key} {n}");
        let number = draw(self.seed, &label) % 1000;
        if number < self.refused {
            return Fault::Refused(status, code);
        }
        if number < self.refused + self.dropped {
            let after = 1 + draw(self.seed, &format!("late {label}")) % 40;
            let changes = [Fault::Dropped, Fault::LostAnswer, Fault::Late(after)];
            let reads = [Fault::Dropped, Fault::CutOff];
            let is_change = matches!(method, "PUT" | "DELETE");
            return choose(self.seed, &format!("kind {label}"), if is_change { &changes } else { &reads });
        }
        Fault::None
    }

    /// Returns the time that a request takes that transfers so many bytes.
    pub fn delay(&self, bytes: usize) -> Duration {
        self.latency + Duration::from_secs(bytes as u64) / u32::try_from(self.rate).unwrap()
    }

    /// Returns true if an object is damaged after it was stored for the n-th time. Without its marker a
    /// remote is none.
    pub fn damages(&self, key: &str, n: u64) -> bool {
        key.contains("v1/") && draw(self.seed, &format!("damage {key} {n}")) % 1000 < self.damaged
    }

    /// Returns the bytes of a damaged object: some of them changed, or without its end.
    pub fn damage(&self, key: &str, bytes: &Bytes) -> Bytes {
        let mut spoiled = bytes.to_vec();
        let number = draw(self.seed, &format!("damaged bytes {key}")) as usize;
        match spoiled.len() {
            0 => {}
            length if number.is_multiple_of(3) => spoiled.truncate(number / 3 % length),
            length => {
                let start = number / 3 % length;
                spoiled[start..length.min(start + 1 + number % 40)].iter_mut().for_each(|byte| *byte ^= 0x55);
            }
        }
        spoiled.into()
    }
}
